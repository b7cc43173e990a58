"""One whole update (rollout, judge, reference, loss, step) beside a hand-written Hugging Face loop and TRL's RLOO.

All begin from the same random weights, in which `<|endoftext|>` is made improbable: every text has all its tokens.
TRL comes with `pip install -e ".[bench]"`.

python tests/benchmarks/bench_update.py [--sizes tiny 124M] [--rivals hand trl] [--dtype fp32|bf16] [--memory]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched

import gymnasium as gym
import torch
import transformers
from common import Machine, interleave, ratio, report, setting
from rivals import KL, LEARNING_RATE, HuggingFaceLoop, free, interleave_with_trl

from agents import GPT2, REINFORCE, GPT2Config, GPT2Policy
from agents.rollout import Episodes
from text_sentiment_env import Vocabulary

SIZES = {
    "tiny": (GPT2Config(n_positions=64, n_embd=256, n_layer=4, n_head=4), "reviews"),
    "124M": (GPT2Config(), "gpt2"),
}


def start_model(size: str) -> GPT2:
    """Random weights. With the usual ones `<|endoftext|>`, being its own likeliest successor, would end many texts."""
    config, name = SIZES[size]
    token_ids = tuple(Vocabulary.load(name).token_ids.tolist())
    gpt2 = GPT2(dataclasses.replace(config, vocab_size=len(token_ids), token_ids=token_ids))
    with torch.no_grad():
        end = gpt2.wte.weight[-1]
        gpt2.ln_f.bias.copy_(
            -30 * end / end.dot(end)
        )  # 30 off its logit, about nothing off others'
    return gpt2


def our_model(gpt2: GPT2, size: str, args: argparse.Namespace) -> REINFORCE:
    """The agent, on an environment that costs nothing but its own work."""
    envs = gym.make_vec(
        "text_sentiment_env:TextSentiment-v0",
        num_envs=args.num_envs,
        vocabulary=SIZES[size][1],
        max_tokens=args.max_tokens,
        sentiment_model=free,
        length_penalty=0,
        autoreset_mode="SameStep",
    )
    return REINFORCE(
        GPT2Policy,
        envs,
        pretrained=gpt2,
        kl_coef=KL,
        learning_rate=LEARNING_RATE,
        device=args.device,
        precision=args.dtype,
        policy_kwargs={"cuda_graphs": args.cuda_graphs, "compile": args.compile},
    )


def time_updates(size: str, machine: Machine, args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table: one for each rival."""
    gpt2 = start_model(size)
    model = our_model(gpt2, size, args)
    vocabulary = Vocabulary.load(SIZES[size][1])
    sizes = args.num_envs, args.max_tokens, args.device, args.dtype == "bf16"

    def we() -> None:
        model.learn(total_updates=1, reset_num_timesteps=False)

    contenders, lengths = {"ours": we}, {}
    with tempfile.TemporaryDirectory() as folder:
        gpt2.save_pretrained(folder)
        if "hand" in args.rivals:
            loop = HuggingFaceLoop(folder, vocabulary, *sizes)
            contenders["by hand"] = loop.update
        if "trl" in args.rivals:
            seconds, lengths["TRL"] = interleave_with_trl(folder, *sizes, contenders, args.rounds)
        else:
            seconds = interleave(contenders, args.rounds)
    texts = (1 + args.rounds) * args.num_envs
    lengths["ours"] = model.num_timesteps / texts
    if "hand" in args.rivals:
        lengths["by hand"] = loop.tokens / texts
    # Written one after the other; read by the policy, forwards and backwards, and by the start model.
    tokens = args.num_envs * args.max_tokens
    floor = args.max_tokens * machine.floor(gpt2, args.num_envs) + machine.floor(gpt2, tokens, 4)
    rows = []
    for rival in seconds.keys() - {"ours"}:
        median, least, most = ratio(seconds["ours"], seconds[rival])
        rows.append(
            [
                size,
                rival,
                f"{statistics.median(seconds['ours']):.3f}",
                f"{floor / statistics.median(seconds['ours']):.0%}",
                f"{statistics.median(seconds[rival]):.3f}",
                f"{median:.2f} ({least:.2f} to {most:.2f})",
                f"{lengths['ours']:.2f} / {lengths[rival]:.2f}",
            ]
        )
    return sorted(rows)


def peak_of(name: str, size: str, args: argparse.Namespace) -> tuple[float, float]:
    """Peak MB of this process before and after two steps on random texts (AdamW's moments begin in the first)."""
    torch.manual_seed(0)
    gpt2, vocabulary = start_model(size), Vocabulary.load(SIZES[size][1])
    texts = torch.randint(len(vocabulary) - 1, (args.num_envs, args.max_tokens), device=args.device)
    mask = torch.ones_like(texts, dtype=torch.bool)
    if name == "ours":
        model = our_model(gpt2, size, args)
        model.learn(0)  # makes the logger
        rewards = torch.rand(texts.shape, device=args.device)
        episodes = Episodes(texts, mask, rewards, [{}] * args.num_envs)

        def step() -> None:
            model.train(episodes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            gpt2.save_pretrained(folder)
            half = args.dtype == "bf16"
            loop = HuggingFaceLoop(
                folder, vocabulary, args.num_envs, args.max_tokens, args.device, half
            )
        ids, rewards = torch.cat([loop.start, texts], 1), torch.rand(len(texts)).to(args.device)

        def step() -> None:
            loop.learn(ids, mask, rewards)

    del gpt2

    def peak() -> float:
        if torch.device(args.device).type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        import resource  # not on Windows

        kilo = 2**20 if sys.platform == "darwin" else 2**10  # there it is counted in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilo

    before = peak()
    for _ in range(2):
        step()
    return before, peak()


def measure_memory(size: str) -> list[str]:
    """A row of the table: each contender in a process of its own, with this one's arguments."""
    peaks = {}
    for name in ("ours", "by hand"):
        command = [sys.executable, *sys.argv, "--sizes", size, "--peak-of", name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[name] = [float(number) for number in out.split()[-2:]]
    (our_start, ours), (their_start, theirs) = peaks["ours"], peaks["by hand"]
    return [
        size,
        f"{ours:,.0f} (before: {our_start:,.0f})",
        f"{theirs:,.0f} (before: {their_start:,.0f})",
        f"{ours / theirs:.2f}",
    ]


def main() -> None:
    """Runs and prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rivals", nargs="+", choices=["hand", "trl"], default=["hand", "trl"])
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-cuda-graphs", dest="cuda_graphs", action="store_false")
    parser.add_argument("--compile", action="store_true", help="we use torch.compile, on a GPU")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of a step, instead of seconds"
    )
    parser.add_argument("--peak-of", choices=["ours", "by hand"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.peak_of:
        print(*peak_of(args.peak_of, args.sizes[0], args))
        return
    what = f"{args.num_envs} × {args.max_tokens} tokens, {args.dtype}, {setting(args.device)}"
    if args.memory:
        columns = ["model", "our peak, MB", "by hand", "ratio"]
        report(f"Memory of a step on {what}", columns, [measure_memory(s) for s in args.sizes])
        return
    if "trl" in args.rivals and not importlib.util.find_spec("trl"):
        args.rivals.remove("trl")
        print('TRL is left out, since it is not installed: pip install -e ".[bench]"')
    columns = [
        "model",
        "rival",
        "our s",
        "of the floor",
        "its s",
        "times faster (least to largest)",
        "tokens a text",
    ]
    machine = Machine.measured(
        args.device, torch.bfloat16 if args.dtype == "bf16" else torch.float32
    )
    rows = [row for size in args.sizes for row in time_updates(size, machine, args)]
    report(f"One update of {what}, {machine.flops / 1e9:,.0f} GFLOP/s", columns, rows)


if __name__ == "__main__":
    main()
