"""Train GPT-2 with REINFORCE to write film reviews that a sentiment model likes.

    python examples/train_reinforce.py                  # two minutes on two CPU cores
    python examples/train_reinforce.py --preset gpt2    # GPT-2, 124M, full vocabulary, for a GPU
    python examples/train_reinforce.py --out runs/mine --updates 300 --resume
    torchrun --nproc-per-node 8 examples/train_reinforce.py --preset gpt2    # on eight GPUs

Writes to --out: summary.json, progress.csv, samples.md, learning_curves.png, checkpoint.zip and gpt2/ (the
trained model in Hugging Face's format).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3 as sb3
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

import text_sentiment_env
from agents import GPT2, REINFORCE, GPT2Config, GPT2Policy, SB3VecEnv, distributed
from agents.evaluation import evaluate
from agents.hyperparameters import KL_ESTIMATORS, LR_DECAYS
from agents.advantages import BASELINES
from text_sentiment_env import SentimentModel, load_sentiment_model

HERE = Path(__file__).parent
OUR_JUDGES = ("vader", "bundled")

# What a preset changes of the flags' defaults, which are those of "reviews".
PRESETS: dict[str, dict[str, Any]] = {
    "reviews": {},
    "small": {"vocabulary": "small", "learning_rate": 3e-4, "kl_coef": 0.1},
    "scratch": {
        "vocabulary": "small",
        "model": "random",
        "sentiment_model": "vader",
        "learning_rate": 1e-3,
        "lr_decay": "constant",
        "kl_coef": 0.0,
        "ent_coef": 0.01,
    },
    "gpt2": {
        "model": "gpt2",
        "vocabulary": "gpt2",
        "prompts": str(HERE / "review_openings.txt"),
        "sentiment_model": "distilbert-base-uncased-finetuned-sst-2-english",
        "max_tokens": 24,
        "learning_rate": 1e-5,
        "kl_coef": 0.05,
        "warmup_updates": 10,
        "updates": 500,
        "num_envs": 128,
    },
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; defaults come from --preset, or from the run that --resume continues."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=_Formatter, allow_abbrev=False
    )
    add = parser.add_argument_group("run").add_argument
    add("--preset", choices=PRESETS, default="reviews", help="sets the defaults of all other flags")
    add("--out", help="folder to write to; default runs/PRESET-seedN, numbered if it is taken")
    add("--resume", action="store_true", help="go on from --out's last checkpoint")
    add("--seed", type=int, default=0, help="of everything random")
    add("--cuda-graphs", action="store_true", help="write texts by replaying CUDA graphs")
    add("--device", default="auto", help="cpu, cuda, cuda:1...; auto: cuda if there is one")
    add(
        "--parallel",
        choices=distributed.PARALLEL,
        default="ddp",
        help="under torchrun: each process has the whole model, or a part of it",
    )
    add("--updates", type=int, default=80, help="gradient steps in all, earlier ones included")
    add(
        "--save-every",
        type=int,
        default=25,
        metavar="N",
        help="updates from checkpoint to checkpoint",
    )
    add(
        "--eval-episodes",
        type=int,
        default=256,
        metavar="N",
        help="texts to judge before and after",
    )
    add("--tensorboard", action="store_true", help="also log for TensorBoard, in --out")
    add("--quiet", action="store_true", help="print nothing but errors")

    add = parser.add_argument_group("environment").add_argument
    add("--num-envs", type=int, default=64, metavar="N", help="texts per update, of all processes")
    add("--vocabulary", default="reviews", help="reviews, small, or gpt2")
    add("--max-tokens", type=int, default=20, help="the most tokens a text may have")
    add("--prompts", metavar="FILE", help="openings, one a line; none: texts from the start")
    add(
        "--sentiment-model",
        default="bundled",
        metavar="NAME|DIR",
        help="the judge: bundled, vader, a Hugging Face classifier's id or directory",
    )
    add(
        "--reward-type",
        choices=["graded", "binary"],
        default="graded",
        help="the judge's score, or its sign",
    )
    add(
        "--target",
        choices=["positive", "negative"],
        default="positive",
        help="the sentiment to write",
    )
    add(
        "--length-penalty",
        type=float,
        default=0.5,
        help="λ, per share of max_tokens beyond --target-length",
    )
    add(
        "--target-length",
        type=int,
        nargs=2,
        default=[8, 20],
        metavar=("LO", "HI"),
        help="tokens without penalty",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=0.0,
        help="μ, times the share of repeated bigrams",
    )

    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default="reviews",
        metavar="NAME|DIR",
        help="start model: reviews, a GPT-2 of the Hugging Face hub, a directory, or random",
    )
    add("--n-layer", type=int, default=2, help="of a random model")
    add("--n-head", type=int, default=4, help="of a random model")
    add("--n-embd", type=int, default=128, help="of a random model")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 on CUDA")

    add = parser.add_argument_group("REINFORCE").add_argument
    add("--learning-rate", type=float, default=7e-4, help="AdamW's")
    add("--lr-decay", choices=LR_DECAYS, default="linear", help="over --updates")
    add(
        "--warmup-updates", type=int, default=0, metavar="N", help="updates of rising learning rate"
    )
    add("--gamma", type=float, default=1.0, help="discount")
    add(
        "--baseline",
        choices=["auto", *BASELINES],
        default="auto",
        help="subtracted from the returns; auto: rloo",
    )
    add(
        "--group-size",
        type=int,
        metavar="N",
        help="rows with the same prompt, for rloo; default 4, or all",
    )
    add(
        "--normalize-advantage",
        action="store_true",
        help="to mean 0 and deviation 1 over the batch",
    )
    add("--ent-coef", type=float, default=0.0, help="weight of the entropy bonus")
    add("--vf-coef", type=float, default=0.5, help="weight of the value loss, for --baseline value")
    add(
        "--kl-coef",
        type=float,
        default=0.03,
        help="β, weight of the divergence from the start model",
    )
    add("--kl-estimator", choices=KL_ESTIMATORS, default="k1", help="in the reward, or in the loss")
    add("--max-grad-norm", type=float, default=1.0, help="the gradient is clipped to this norm")
    add(
        "--micro-batch-size",
        type=int,
        metavar="N",
        help="rows through the model at a time; default all",
    )

    known, _ = parser.parse_known_args(argv)
    parser.set_defaults(**PRESETS[known.preset])
    if known.resume:
        known.out = known.out or str(_latest_run(known))
        stored = Path(known.out) / "arguments.json"
        if not stored.is_file() or not (Path(known.out) / "checkpoint.zip").is_file():
            parser.error(f"--resume: {known.out} holds no run with a checkpoint; check --out")
        parser.set_defaults(**json.loads(stored.read_text("utf-8")), out=known.out)
    args = parser.parse_args(argv)
    for name in ("updates", "num_envs", "save_every", "eval_episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
    if args.num_envs % processes:
        parser.error(f"--num-envs {args.num_envs}: must be a multiple of the {processes} processes")
    if not args.resume:
        if args.out and (Path(args.out) / "checkpoint.zip").exists():
            parser.error(f"--out {args.out} holds a run: add --resume to go on, or choose another")
        args.out = args.out or str(_next_run(args))
    return args


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _runs(args: argparse.Namespace) -> list[Path]:
    base = Path("runs") / f"{args.preset}-seed{args.seed}"
    return [base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000))]


def _next_run(args: argparse.Namespace) -> Path:
    return next(path for path in _runs(args) if not path.exists())


def _latest_run(args: argparse.Namespace) -> Path:
    runs = _runs(args)
    return next((path for path in reversed(runs) if path.exists()), runs[0])


# ------------------------------------------------------------------------------------------- parts


def make_env(args: argparse.Namespace, judge: str | SentimentModel, num_envs: int) -> SB3VecEnv:
    """The environment of the command line."""
    envs = gym.make_vec(
        "text_sentiment_env:TextSentiment-v0",
        num_envs=num_envs,
        vocabulary=args.vocabulary,
        max_tokens=args.max_tokens,
        prompts=args.prompts,
        sentiment_model=judge,
        reward_type=args.reward_type,
        target=args.target,
        length_penalty=args.length_penalty,
        target_length=tuple(args.target_length),
        repetition_penalty=args.repetition_penalty,
        autoreset_mode="SameStep",
    )
    return SB3VecEnv(envs)


def make_judge(args: argparse.Namespace) -> str | SentimentModel:
    """The judge; a network goes where the policy is, one of Hugging Face in bf16 on CUDA."""
    cuda = torch.cuda.is_available() if args.device == "auto" else args.device.startswith("cuda")
    if args.sentiment_model == "bundled" and cuda:
        return load_sentiment_model("bundled", device=args.device.replace("auto", "cuda"))
    if args.sentiment_model in OUR_JUDGES:
        return args.sentiment_model
    dtype = "bfloat16" if cuda else "float32"
    return load_sentiment_model(args.sentiment_model, device=args.device, dtype=dtype)


def make_model(args: argparse.Namespace, env: SB3VecEnv) -> REINFORCE:
    """A new agent."""
    policy_kwargs: dict[str, Any] = {"cuda_graphs": args.cuda_graphs}
    if args.model == "random":
        width = env.observation_space.shape[0]  # type: ignore[index]
        policy_kwargs["config"] = GPT2Config(
            vocab_size=int(env.action_space.n),  # type: ignore[attr-defined]
            n_positions=width + 1,
            n_embd=args.n_embd,
            n_layer=args.n_layer,
            n_head=args.n_head,
        )
    names = REINFORCE.ARGUMENTS
    return REINFORCE(
        GPT2Policy,
        env,
        pretrained=None if args.model == "random" else args.model,
        precision=args.precision,
        parallel=args.parallel,
        policy_kwargs=policy_kwargs,
        device=args.device,
        **{name: getattr(args, name) for name in names},
    )


class AppendingCSV(CSVOutputFormat):
    """SB3's CSV log, which goes on behind the rows of the updates that a checkpoint holds."""

    def __init__(self, path: Path, updates: int) -> None:
        rows: list[dict[str, str]] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [r for r in csv.DictReader(file) if float(r["train/n_updates"]) <= updates]
        super().__init__(str(path))
        if rows:
            self.keys = list(rows[0])
            writer = csv.DictWriter(self.file, self.keys, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            self.file.flush()


class RunCallback(BaseCallback):
    """Saves checkpoints between updates, and prints how the run goes."""

    def __init__(self, out: Path, save_every: int, updates: int, console: Console) -> None:
        super().__init__()
        self.out, self.save_every, self.updates, self.console = out, save_every, updates, console

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        done = self.model._n_updates
        if done and done % self.save_every == 0:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint: a run that goes on from it equals this one."""
        self.model.save(self.out / "checkpoint.zip")

    def _on_rollout_end(self) -> None:
        update = self.model._n_updates
        if update % max(1, self.updates // 20) and update + 1 < self.updates:
            return
        values = self.logger.name_to_value  # the rollout's; update's are those of the one before
        reward = values["rollout/ep_rew_mean"]
        bar = "█" * round(20 * max(0.0, min(1.0, (reward + 1) / 2)))
        self.console.print(
            f"update {update + 1:4d}/{self.updates}  reward {reward:+.3f} {bar:20s}"
            f"  sentiment {values['rollout/sentiment']:+.3f}"
            f"  length {values['rollout/length']:4.1f}",
            highlight=False,
            soft_wrap=True,
        )


# -------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    args = parse_arguments(argv)
    status = run(args)
    distributed.leave()
    return status


def run(args: argparse.Namespace) -> int:
    """Evaluates, trains, evaluates again, and returns the exit status."""
    settings = {k: v for k, v in vars(args).items() if k not in ("resume", "out")}
    args.device = distributed.join(args.device)
    first = distributed.rank() == 0  # which alone prints and writes
    args.out = distributed.gather_objects(args.out)[
        0
    ]  # the others may have seen the first's folder
    console = Console(quiet=args.quiet or not first)
    out = Path(args.out)
    began = time.perf_counter()
    judge = make_judge(args)
    env = make_env(args, judge, args.num_envs // distributed.world_size())
    if args.resume:
        model = REINFORCE.load(
            out / "checkpoint.zip", env=env, device=args.device, parallel=args.parallel
        )
    else:
        model = make_model(args, env)
    if first:
        out.mkdir(parents=True, exist_ok=True)
        (out / "arguments.json").write_text(json.dumps(settings, indent=2), "utf-8")
    parameters = sum(p.numel() for p in model.policy.gpt2.parameters())
    console.print(
        f"{args.model} GPT-2, {parameters:,} parameters, {len(env.get_attr('vocabulary')[0])} tokens, on"
        f" {model.device}; judge {args.sentiment_model}; writing to {out}",
        highlight=False,
    )

    judges = {} if args.sentiment_model == "vader" else {"vader": load_sentiment_model("vader")}
    eval_env = make_env(args, judge, args.num_envs) if first else env

    def measure(gpt2: GPT2) -> tuple[dict[str, Any], GPT2]:
        """Measures of a model's texts, and a copy of it, for the first rank; the others go on."""
        weights = distributed.full_state_dict(gpt2.state_dict())
        with distributed.summon_full_params(model.reference):
            if not first:
                return {}, gpt2
            with torch.random.fork_rng(devices=[]):
                policy = GPT2Policy(**model.policy._get_constructor_parameters()).to(model.device)
            policy.gpt2.load_state_dict(weights)
            texts = evaluate(policy, model.reference, eval_env, args.eval_episodes, 1000, judges)
            return texts, policy.gpt2

    before = measure(model.reference)[0]
    status, seconds = train(model, args, out, console)
    after, trained = measure(model.policy.gpt2)
    if not first:
        return status
    trained.save_pretrained(out / "gpt2")
    tokens = model.num_timesteps - model._num_timesteps_at_start
    samples = before.pop("samples"), after.pop("samples")
    summary = {
        "arguments": settings | {"out": str(out)},
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (text_sentiment_env, torch, gym, sb3)},
        "hardware": {
            "device": torch.cuda.get_device_name()
            if model.device.type == "cuda"
            else platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
        },
        "parameters": parameters,
        "updates": model._n_updates,
        "episodes": model._episode_num,
        "tokens": model.num_timesteps,
        "seconds": round(seconds, 2),  # of this call's training alone
        "total_seconds": round(time.perf_counter() - began, 2),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "before": before,
        "after": after,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2), "utf-8")
    write_samples(out / "samples.md", summary, *samples)
    plot(out / "progress.csv", out / "learning_curves.png", before, after)
    show(console, summary, *samples)
    return status


def train(
    model: REINFORCE, args: argparse.Namespace, out: Path, console: Console
) -> tuple[int, float]:
    """Trains to --updates, or to Ctrl-C; returns the exit status and the seconds it took."""
    done = model._n_updates
    first = distributed.rank() == 0
    outputs: list[Any] = [AppendingCSV(out / "progress.csv", done)] if first else []
    if args.tensorboard and first:
        outputs.append(TensorBoardOutputFormat(str(out / "tensorboard")))
    model.set_logger(Logger(str(out), outputs))
    callback = RunCallback(out, args.save_every, args.updates, console)

    def stop(*_: Any) -> None:
        console.print("stopping after this update; Ctrl-C again to stop at once")
        model.request_stop()
        if distributed.world_size() == 1:  # torchrun passes on the Ctrl-C that all have seen
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, stop)
    began, status = time.perf_counter(), 0
    try:
        if done < args.updates:
            most = args.updates * args.num_envs * args.max_tokens
            model.learn(
                most,
                CallbackList([callback]),
                reset_num_timesteps=not args.resume,
                total_updates=args.updates - done,
            )
            callback.save()
    except FloatingPointError as error:
        # The weights are the last good ones, but this batch's random numbers are spent: the last
        # checkpoint stays as it is.
        if first:
            print(f"error: {error}", file=sys.stderr)
        status = 1
    finally:
        signal.signal(signal.SIGINT, previous)
    if model._n_updates < args.updates and not status:
        console.print(f"stopped after {model._n_updates} updates; --resume goes on from there")
    model.logger.close()
    return status, time.perf_counter() - began


MEASURES = (
    "reward",
    "sentiment",
    "vader",
    "length",
    "end_rate",
    "entropy",
    "kl",
    "perplexity",
    "distinct_1",
    "distinct_2",
    "distinct_texts",
)


def write_samples(
    path: Path, summary: dict[str, Any], before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    """Texts before and after training, side by side, with their rewards."""
    lines = [
        "# Samples",
        "",
        f"{summary['updates']} updates, {summary['episodes']} episodes; same seeds before and after.",
        "",
        "| reward before | text before | reward after | text after |",
        "|---:|---|---:|---|",
    ]
    for old, new in list(zip(before, after, strict=True))[:40]:
        cells = [f"{s['reward']:+.2f} | {_cell(s['text'])}" for s in (old, new)]
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ↵ ") or "*(empty)*"


def plot(progress: Path, path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Learning curves, with the evaluations before and after as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(progress, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    panels = [
        ("reward", "rollout/ep_rew_mean", "reward"),
        ("sentiment", "rollout/sentiment", "sentiment"),
        ("length (tokens)", "rollout/length", "length"),
        ("KL to the start model (nats a text)", "train/kl", "kl"),
        ("entropy (nats a token)", "train/entropy", "entropy"),
        ("share of texts that end by themselves", "rollout/end_rate", "end_rate"),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    last = float(rows[-1]["train/n_updates"]) if rows else 0
    for axis, (title, column, measure) in zip(axes.flat, panels, strict=True):
        points = [(float(r["train/n_updates"]), float(r[column])) for r in rows if r.get(column)]
        if points:
            axis.plot(*zip(*points, strict=True), color="tab:blue", lw=1.2, label="training batch")
        values = (before[measure], after[measure])
        axis.plot((0, last), values, "o", color="tab:orange", label="evaluation")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show(
    console: Console,
    summary: dict[str, Any],
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> None:
    """The outcome, for the terminal."""
    table = Table("", "before", "after", title="Mean over fresh texts")
    for name in MEASURES:
        if name in summary["before"]:
            table.add_row(name, *(f"{summary[when][name]:.3f}" for when in ("before", "after")))
    console.print(table)
    table = Table("before", "reward", "after", "reward", title="Samples")
    for old, new in list(zip(before, after, strict=True))[:8]:
        cells = [(s["text"].strip(), f"{s['reward']:+.2f}") for s in (old, new)]
        table.add_row(*cells[0], *cells[1])
    console.print(table)
    console.print(
        f"{summary['updates']} updates in {summary['seconds']:.0f} s,"
        f" {summary['tokens_per_second']:.0f} tokens/s; everything is in {summary['arguments']['out']}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
