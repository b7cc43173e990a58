"""All that is to be checked and measured on one GPU, in under ten minutes; tables as markdown in a folder.

It runs `pytest -m gpu`, then writes a table each for generation, one update and the larger shapes. Every
table is written as soon as it is measured, and a part that fails leaves its traceback and the others run.

python tests/benchmarks/gpu_session.py OUT [--parts tests generate update profile shapes presets] [--minutes 9]
python tests/benchmarks/gpu_session.py OUT --smoke    # a tiny model on the CPU: tries the script itself
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched
sys.path.insert(0, str(Path(__file__).parents[2]))  # the package, installed or not

import bench_update
import torch
import transformers
from bench_update import our_model, start_model
from common import Machine, interleave, now, setting, timed
from rivals import HuggingFaceLoop
from transformers import GPT2LMHeadModel

from agents import GPT2, REINFORCE, GPT2Config
from agents.rollout import collect_episodes
from text_sentiment_env import Vocabulary

TINY = GPT2Config(vocab_size=8192, n_positions=64, n_embd=32, n_layer=2, n_head=2)
SHAPES = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}


class Session:
    """The settings of a run, and its folder of tables."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.smoke = Path(args.out), args.smoke
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if self.smoke else "cuda"
        self.deadline = time.monotonic() + 60 * args.minutes
        self.new_tokens = 4 if self.smoke else 20
        self.rounds = 1 if self.smoke else 5
        self.machine = Machine.measured(self.device, torch.bfloat16)

    def late(self, seconds: float = 0) -> bool:
        """Whether fewer than so many seconds are left."""
        return time.monotonic() + seconds > self.deadline

    def write(self, name: str, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Writes and prints a table; called after each row, so that what is measured is kept."""
        what = f"{title}: {setting(self.device)}, transformers {transformers.__version__}, bf16"
        lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
        text = f"{what}; a product of large matrices: {self.machine.flops / 1e12:.4g} TFLOP/s\n\n"
        (self.out / f"{name}.md").write_text(text + "\n".join(lines) + "\n")
        print(f"{name}: {rows[-1] if rows else 'nothing'}", flush=True)

    def reset_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        """Peak memory in GiB since `reset_peak`; only of a GPU."""
        if self.device == "cpu":
            return "-"
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"


def weights(gpt2: GPT2) -> int:
    """Weights that every token is multiplied with: all matrices but the positions."""
    return sum(p.numel() for p in gpt2.parameters() if p.ndim == 2) - gpt2.wpe.weight.numel()


# ------------------------------------------------------------------------------------------ parts


def run_tests(session: Session) -> None:
    """`pytest -m gpu`; its output in a file, its last line on the screen."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-n", "0"]  # one process has the GPU
    command += ["--continue-on-collection-errors"]  # of files that want what is not installed
    command += ["--collect-only"] if session.smoke else []
    limit = max(30.0, 0.4 * (session.deadline - time.monotonic()))
    with open(session.out / "tests.txt", "w") as file:
        try:
            subprocess.run(
                [*command, "tests"], cwd=root, stdout=file, stderr=file, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {limit:.0f} s\n")
    print("tests:", (session.out / "tests.txt").read_text().strip().splitlines()[-1], flush=True)


def measure_generation(session: Session) -> None:
    """Tokens a second, eager and replayed, beside transformers' `generate` in turn."""
    config, T = TINY if session.smoke else SHAPES["gpt2"], session.new_tokens
    gpt2 = GPT2(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        gpt2.save_pretrained(folder)
        theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16).to(session.device)
    gpt2, theirs = gpt2.to(session.device, torch.bfloat16), theirs.eval()
    columns = ["rows", "eager, tokens/s", "CUDA graphs", "and compiled", "transformers"]
    columns += ["graphs / transformers", "compiled / transformers", "compiled, of the floor"]
    columns += ["graphs equal eager", "peak, GiB"]
    compiled = copy.deepcopy(gpt2)
    compiled.use_compiled_kernels()
    rows: list[list[str]] = []
    for batch in (4,) if session.smoke else (64, 256, 1024):
        ids = torch.randint(config.vocab_size, (batch, 1), device=session.device)

        def ours(graph: bool, model: GPT2 = gpt2, ids: torch.Tensor = ids) -> torch.Tensor:
            return model.generate(ids, T, end_index=-1, cuda_graph=graph and not session.smoke)

        def they(ids: torch.Tensor = ids) -> torch.Tensor:
            with torch.no_grad():
                return theirs.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=T,
                    max_new_tokens=T,
                    do_sample=True,
                    top_k=0,
                    pad_token_id=0,
                )

        session.reset_peak()
        for model in (gpt2, compiled):
            ours(True, model)  # eager, as the first call is; the second captures
        contenders: dict[str, Callable[[], object]] = {
            "eager": lambda: ours(False),
            "graphs": lambda: ours(True),
            "compiled": lambda: ours(True, compiled),
            "transformers": they,
        }
        taken = interleave(contenders, session.rounds, warmup=2)
        eager, graphs, fused, rival = (statistics.median(taken[name]) for name in contenders)
        same = []
        for graph in (False, True):
            torch.manual_seed(batch)
            same.append(ours(graph))
        speeds = [f"{batch * T / s:,.0f}" for s in (eager, graphs, fused, rival)]
        floor = T * session.machine.floor(gpt2, batch) / fused
        ratios = [f"{rival / graphs:.1f}", f"{rival / fused:.1f}", f"{floor:.0%}"]
        equal = "yes" if torch.equal(*same) else "NO"
        rows.append([f"{batch:,}", *speeds, *ratios, equal, session.peak()])
        session.write(
            "generation", f"Generating {T} tokens a row, {len(gpt2.h)} layers", columns, rows
        )
        if session.late(60):
            break


@contextlib.contextmanager
def timed_calls(owner: object, names: dict[str, str], spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of an object's methods to `spent`, under the names given; it waits for the GPU."""
    saved = {method: getattr(owner, method) for method in names}

    def wrap(method: str, name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            began = now()
            try:
                return saved[method](*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + now() - began

        return call

    for method, name in names.items():
        setattr(owner, method, wrap(method, name))
    try:
        yield
    finally:
        for method, function in saved.items():
            setattr(owner, method, function)


def make_agent(
    session: Session,
    config: GPT2Config,
    rows: int,
    cuda_graphs: bool = True,
    compile: bool = False,
) -> tuple[REINFORCE, GPT2]:
    """bench_update's agent and start model, of this shape and batch."""
    bench_update.SIZES["session"] = (config, "reviews" if session.smoke else "gpt2")
    with torch.device(session.device):  # drawing the weights of the largest takes a CPU long
        gpt2 = start_model("session")
    args = argparse.Namespace(
        num_envs=rows,
        max_tokens=session.new_tokens,
        device=session.device,
        dtype="bf16",
        cuda_graphs=cuda_graphs,
        compile=compile,
    )
    agent = our_model(gpt2, "session", args)
    agent.learn(0)  # makes the logger
    return agent, gpt2.cpu()  # out of the peak of memory


def training_flops(gpt2: GPT2, tokens: int, passes: float) -> float:
    """Of so many passes forward (a backward pass is two) over so many tokens; attention is left out."""
    return 2 * passes * weights(gpt2) * tokens


def measure_update(session: Session) -> None:
    """One update: its parts, the model's share of the matrix units' rate, memory; and by hand."""
    columns = ["rows", "ours", "update, s", "writing", "judge and env", "policy forward"]
    columns += ["start model", "backward", "step", "other", "train, s", "its MFU"]
    columns += ["peak, GiB", "by hand, s", "first update, s"]
    rows: list[list[str]] = []
    config = TINY if session.smoke else SHAPES["gpt2"]
    for batch in (4,) if session.smoke else (256, 1024):
        for name in ("eager", "CUDA graphs", "and compiled"):
            if session.late(60):
                return
            session.reset_peak()
            options = {"cuda_graphs": name != "eager", "compile": name == "and compiled"}
            agent, gpt2 = make_agent(session, config, batch, **options)
            first = timed(lambda agent=agent: agent.learn(total_updates=1))
            rows.append([f"{batch:,}", name, *time_update(session, agent, gpt2)])
            del agent
            rows[-1].append(time_by_hand(session, gpt2, batch) if name == "eager" else "")
            rows[-1].append(f"{first:.1f}")
            title = f"One update on {session.new_tokens} tokens a row, {config.n_layer} layers"
            session.write("update", title, columns, rows)


def time_update(session: Session, agent: REINFORCE, gpt2: GPT2) -> list[str]:
    """Seconds of an update as it is, then the shares of its parts, for which each part is waited for."""

    def update() -> None:
        agent.learn(total_updates=1, reset_num_timesteps=False)

    seconds = interleave({"update": update}, session.rounds, warmup=3)["update"]
    whole, peak = statistics.median(seconds), session.peak()
    episodes = collect_episodes(agent.policy, agent.env)
    step = {"train": lambda: agent.train(episodes)}
    trained = statistics.median(interleave(step, session.rounds)["train"])
    spent: dict[str, float] = {}
    policy = agent.policy
    evaluate = policy.evaluate_texts

    def split(texts, mask, gpt2=None, **start):  # the policy's pass or the start model's
        began = now()
        result = evaluate(texts, mask, gpt2, **start)
        name = "policy forward" if gpt2 is None else "start model"
        spent[name] = spent.get(name, 0.0) + now() - began
        return result

    policy.evaluate_texts = split
    with (
        timed_calls(policy, {"generate_texts": "writing"}, spent),
        timed_calls(agent.env, {"step_wait": "judge and env", "reset": "judge and env"}, spent),
        timed_calls(agent, {"learn": "whole"}, spent),
        timed_calls(torch.Tensor, {"backward": "backward"}, spent),
        timed_calls(policy.optimizer, {"step": "step"}, spent),
    ):
        for _ in range(session.rounds):
            update()
    del policy.evaluate_texts
    names = ["writing", "judge and env", "policy forward", "start model", "backward", "step"]
    shares = [spent.get(name, 0.0) / spent["whole"] for name in names]
    shares.append(1 - sum(shares))
    # The policy forward and backward is three passes, the start model's a fourth.
    flops = training_flops(gpt2, int(episodes.mask.sum()), 4)
    mfu = flops / trained / session.machine.flops
    parts = [f"{share:.0%}" for share in shares]
    return [f"{whole:.3f}", *parts, f"{trained:.3f}", f"{mfu:.0%}", peak]


def time_by_hand(session: Session, gpt2: GPT2, batch: int) -> str:
    """Seconds of the hand-written loop's update."""
    vocabulary = Vocabulary.load("reviews" if session.smoke else "gpt2")
    with tempfile.TemporaryDirectory() as folder:
        gpt2.save_pretrained(folder)
        loop = HuggingFaceLoop(folder, vocabulary, batch, session.new_tokens, session.device, True)
    try:
        taken = interleave({"by hand": loop.update}, max(1, session.rounds - 2))["by hand"]
        return f"{statistics.median(taken):.3f}"
    except torch.OutOfMemoryError:
        return "out of memory"


def profile(session: Session) -> None:
    """Seconds of each kernel, in writing a batch and in a training step; tables of torch's profiler."""
    for batch in (4,) if session.smoke else (256, 1024):
        profile_update(session, batch)


def profile_update(session: Session, batch: int) -> None:
    agent, _ = make_agent(session, TINY if session.smoke else SHAPES["gpt2"], batch, compile=True)
    episodes = collect_episodes(agent.policy, agent.env)
    obs = torch.full_like(episodes.texts, agent.policy.pad_index)
    runs: dict[str, Callable[[], object]] = {
        "write": lambda: agent.policy.generate_texts(obs, session.new_tokens),
        "train": lambda: agent.train(episodes),
    }
    for name, run in runs.items():
        interleave({name: run}, 1, warmup=2)
        name = f"{name}-{batch}"
        with torch.profiler.profile() as profiler, torch.set_grad_enabled(name.startswith("train")):
            run()
            now()
        by = "cpu" if session.smoke else "cuda"
        table = profiler.key_averages().table(
            sort_by=f"self_{by}_time_total", row_limit=40, max_name_column_width=90
        )
        (session.out / f"profile-{name}.txt").write_text(table)
        kernels = [e for e in profiler.key_averages() if e.self_device_time_total]
        kernels = [e for e in kernels if not e.key.startswith("aten::")]
        kernels.sort(key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in kernels)
        print(f"{name}: {total / 1000:.2f} ms of kernels")
        for e in kernels[:25]:
            print(f"{e.self_device_time_total / 1000:9.3f} ms {e.count:6} {e.key[:110]}")


def measure_shapes(session: Session) -> None:
    """One update of the larger shapes, whole and in micro-batches: what fits, and how fast."""
    columns = ["model", "weights", "rows", "micro-batch", "update, s", "tokens/s", "peak, GiB"]
    rows: list[list[str]] = []
    shapes = {"tiny": TINY} if session.smoke else {n: s for n, s in SHAPES.items() if n != "gpt2"}
    for name, config in shapes.items():
        batch = 4 if session.smoke else 256
        session.reset_peak()
        agent, gpt2 = make_agent(session, config, batch)
        size = f"{sum(p.numel() for p in gpt2.parameters()) / 1e6:,.0f} M"
        del gpt2
        for micro in (None, 2) if session.smoke else (None, 64):
            if session.late(30):
                return
            agent.micro_batch_size = micro
            session.reset_peak()

            def update(agent: REINFORCE = agent) -> None:
                agent.learn(total_updates=1, reset_num_timesteps=False)

            row = [name, size, f"{batch:,}", "-" if micro is None else f"{micro}"]
            try:
                before = agent.num_timesteps
                taken = interleave({"update": update}, min(2, session.rounds))["update"]
                tokens = (agent.num_timesteps - before) / (1 + len(taken))
                seconds = statistics.median(taken)
                row += [f"{seconds:.2f}", f"{tokens / seconds:,.0f}", session.peak()]
            except torch.OutOfMemoryError:
                row += ["out of memory", "-", session.peak()]
            rows.append(row)
            session.write("shapes", f"One update, {session.new_tokens} tokens a row", columns, rows)
        del agent, update


def run_presets(session: Session) -> None:
    """`train_reinforce.py` end to end: the default preset, and GPT-2's shape from random weights."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    script = root / "examples" / "train_reinforce.py"
    random = ["--preset", "gpt2", "--model", "random", "--sentiment-model", "bundled"]
    random += ["--n-layer", "12", "--n-head", "12", "--n-embd", "768", "--updates", "200"]
    random += ["--initial-length", "6", "--learning-rate", "1e-4", "--compile"]
    runs = {"reviews": ["--preset", "reviews"], "gpt2-random": random}
    if session.smoke:
        runs = {"reviews": ["--preset", "reviews", "--updates", "2", "--num-envs", "4"]}
    for name, arguments in runs.items():
        left = session.deadline - time.monotonic()
        if left < 30:
            return
        out = session.out / name
        command = [sys.executable, str(script), *arguments, "--device", session.device]
        began = time.monotonic()
        with (
            open(session.out / f"{name}.txt", "w") as file,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            subprocess.run(
                [*command, "--out", str(out)],
                env=environment,
                stdout=file,
                stderr=file,
                timeout=left,
                check=True,
            )
        spent = time.monotonic() - began
        with open(out / "progress.csv", newline="", encoding="utf-8") as file:
            log = list(csv.DictReader(file))
        names = ["train/n_updates", "time/time_elapsed", "rollout/ep_rew_mean", "train/kl"]
        names += ["train/entropy", "time/rollout_fps", "time/update_fps"]
        names = [n for n in names if n in log[0]]
        every = max(1, len(log) // 20)
        rows = [[f"{float(row[n]):.4g}" for n in names] for row in log[::every]]
        session.write(name, f"`{' '.join(arguments)}`, {spent:.0f} s in all", names, rows)


PARTS = {
    "tests": run_tests,
    "generate": measure_generation,
    "update": measure_update,
    "profile": profile,
    "shapes": measure_shapes,
    "presets": run_presets,
}


def main() -> None:
    """Runs the parts in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="the folder of the tables")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="starts nothing behind these")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    session, failed = Session(args), []
    for name in args.parts:
        began = time.monotonic()
        try:
            PARTS[name](session)
        except Exception:
            failed.append(name)
            (session.out / f"{name}-failed.txt").write_text(traceback.format_exc())
            traceback.print_exc()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
