"""The main program: evaluate, train, evaluate again, and write what came out.

`examples/train_reinforce.py` and `python -m agents train` run it. `--out` is the run's folder, in which its page
`report.html`, its figures, texts and checkpoints appear.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from rich.console import Console
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import get_device

from agents import (
    GPT2,
    REINFORCE,
    GPT2Config,
    GPT2Policy,
    SB3VecEnv,
    cli,
    distributed,
    model_card,
    page,
    report,
)
from agents.arguments import Args, EnvironmentArgs, parse_arguments
from agents.callbacks import AppendingCSV, CheckpointCallback, MonitorCSV
from agents.display import ProbeCallback, RunDisplay, show_outcome
from agents.evaluation import evaluate
from agents.frontier import START_TEXTS, Frontier, start_frontier
from agents.functions import is_function, load_function, with_functions
from agents.logs import TensorBoard, TextLog, Tracker
from agents.rollout import prompts_of
from agents.runs import RunFolder, StopSignals
from text_sentiment_env import SentimentModel, load_sentiment_model

# -------------------------------------------------------------------------------------------- main


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Runs the command line and returns its exit status; `description` stands above `--help`'s flags."""
    args = parse_arguments(argv, description)
    with StopSignals() as stop:
        try:
            status = run(args, stop)
        except KeyboardInterrupt:
            saved = bool(RunFolder(str(args.run.out)).checkpoints())
            with suppress(OSError):  # the terminal may be gone
                print("stopped;", "--resume goes on" if saved else "nothing was saved yet")
            return stop.status or 130
    distributed.leave()
    return status


def run(args: Args, stop: StopSignals) -> int:
    """Evaluates, trains, evaluates again, and returns the exit status."""
    began = time.perf_counter()
    keep_freed_memory()
    device = distributed.join(args.run.device)
    first = distributed.rank() == 0  # which alone prints and writes
    folder = RunFolder(distributed.gather_objects(args.run.out)[0])  # the first rank's choice
    console = Console(quiet=args.run.quiet or not first)
    display = RunDisplay(console)
    with folder.locked() if first else nullcontext():
        distributed.wait()
        if folder.checkpoints() and not args.run.resume:
            raise ValueError(f"--out {folder.path} holds a run: add --resume, or choose another")
        settings = {k: v for k, v in args.flat().items() if k not in ("resume", "out", "quiet")}
        if args.run.resume:
            args.environment.prompts = folder.prompts(args.environment.prompts)
        elif first:  # another run may have been killed here before its first checkpoint
            (folder.path / START_TEXTS).unlink(missing_ok=True)
        with display.status("loading judge and model"):
            judge = make_judge(args.environment.sentiment_model, device, args.run.quiet)
            rows = args.environment.num_envs
            env = make_env(args.environment, judge, rows // distributed.world_size())
            eval_env = make_env(args.environment, judge, rows) if first else env
            evaluator = Evaluator(args, eval_env, display)
            model, origin = load_model(args, env, device, folder)
        resumed_at = model._n_updates if args.run.resume else None
        changes = folder.record(settings, resumed_at)
        if first and not args.run.resume:
            folder.keep_prompts(args.environment.prompts)
        about = Text(
            introduction(model, args, origin, folder)
        )  # no markup: names may hold brackets
        console.print(about, soft_wrap=True)
        tracker = None
        if first and args.run.track:
            begun = model._n_updates
            tracker = Tracker(args.run.track, folder.path, settings, begun, console.quiet)
        evaluator.measure_start(model, folder)
        before = evaluator.measure(model, model.reference)
        trained = train(model, args, folder, display, judge, stop, tracker)
        if trained.error:  # its weights are not to be trusted
            model, after = measure_last_good(args, env, device, folder, evaluator)
        else:
            after = evaluator.measure(model, model.policy.gpt2, folder.exported)
        status = 1 if trained.error else max(distributed.gather_objects(stop.status))
        if not first:
            return status
        folder.remove_old(args.run.keep)  # a run that was killed may have left more
        summary = {
            "arguments": settings | {"out": str(folder.path)},
            "changes": changes,
            "resumed_at": resumed_at,
            **run_facts(model, trained, began),
            **(earlier_times(folder) if resumed_at and not trained.tokens else {}),
            **evaluator.optimum(),
        }
        write_results(folder, summary, before, after, judge, console)
        if tracker is not None:
            tracker.finish(before, after)
        return status


class Trained(NamedTuple):
    """What `train` did."""

    tokens: int
    seconds: float
    error: str | None  # if a number was not finite


def train(
    model: REINFORCE,
    args: Args,
    folder: RunFolder,
    display: RunDisplay,
    judge: SentimentModel,
    stop: StopSignals,
    tracker: Tracker | None,
) -> Trained:
    """Trains to --updates, to a signal, or until a number is not finite."""
    tokens, began, error = model.num_timesteps, time.perf_counter(), None
    done, updates, console = model._n_updates, args.run.updates, display.console
    outputs: list[KVWriter] = []
    first_rank: list[BaseCallback] = []
    if distributed.rank() == 0:
        first_rank.append(MonitorCSV(folder.path / "monitor.csv", done))
        outputs += [AppendingCSV(folder.path / "progress.csv", done), display]
        if args.run.tensorboard:
            outputs.append(TensorBoard(folder.path / "tensorboard", model.num_timesteps))
        if tracker is not None:
            outputs.append(tracker)
        if tracker is not None or args.run.tensorboard:
            first_rank.append(TextLog(args.flat()))
    model.set_logger(Logger(str(folder.path), outputs))

    def request_stop() -> None:
        model.request_stop()
        console.quiet |= stop.status == 129  # the terminal is gone
        console.print("stopping after this update; Ctrl-C again to stop at once")

    try:
        if done == updates:
            console.print(f"already at update {done}: nothing to train, the results are made again")
        else:
            save = CheckpointCallback(
                lambda model: folder.save(model, args.run.keep), args.run.save_every
            )
            probe = ProbeCallback(display, judge, second_judges(args).get("vader"))
            with stop.deferred(request_stop), display.training(done, updates):
                model.learn(
                    callback=CallbackList([save, probe, *first_rank]),
                    reset_num_timesteps=not args.run.resume,
                    total_updates=updates - done,
                )
            if model._n_updates < updates:
                console.print(
                    f"stopped after {model._n_updates} updates; --resume goes on from there"
                )
    except FloatingPointError as raised:
        # This batch's random numbers are spent: the last checkpoint stays as it is.
        error = str(raised)
        if distributed.rank() == 0:
            print(f"error: {error}", file=sys.stderr)
    finally:
        model.logger.close()
    return Trained(model.num_timesteps - tokens, time.perf_counter() - began, error)


def run_facts(model: REINFORCE, trained: Trained, began: float) -> dict[str, Any]:
    """Where, with what and how long the run ran, for the summary."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": report.versions(),
        "hardware": report.hardware(model.device),
        "computes_in": model.policy.computes_in,
        "parameters": sum(p.numel() for p in model.policy.gpt2.parameters()),
        "updates": model._n_updates,
        "episodes": model._episode_num,
        "tokens": model.num_timesteps,
        "seconds": round(trained.seconds, 2),  # of this call's training alone
        "total_seconds": round(time.perf_counter() - began, 2),
        "tokens_per_second": round(trained.tokens / max(trained.seconds, 1e-9), 1),
        "error": trained.error,
    }


def earlier_times(folder: RunFolder) -> dict[str, Any]:
    """What the last summary says of the training's time: a call that trains nothing keeps it."""
    try:
        earlier = json.loads((folder.path / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("resumed_at", "seconds", "tokens_per_second")
    return {name: earlier[name] for name in names if name in earlier}


def write_results(
    folder: RunFolder,
    summary: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    judge: SentimentModel,
    console: Console,
) -> None:
    """Writes summary, samples, model card and, last of all, the pictures; prints the outcome."""
    figures = [{k: v for k, v in m.items() if k != "samples"} for m in (before, after)]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    summary = {**summary, "date": date, "before": figures[0], "after": figures[1]}
    folder.write_json("summary.json", summary)
    title = (
        f"{summary['updates']} updates, {summary['episodes']} episodes; same seeds before and"
        " after."
    )
    samples = before["samples"], after["samples"]
    report.write_samples(folder.path, title, *samples)
    model_card.write(folder.exported, summary)
    page.write(folder.path, judge)
    show_outcome(console, summary, *samples)


# ------------------------------------------------------------------------------------------- parts


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next tensors; other C libraries stay as they are.

    Each update frees tensors of 200 MB and makes them anew. glibc returns large ones to the kernel at once,
    and the kernel clears every page that it hands out: a twentieth to a tenth of an update.
    See mallopt(3).
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**28)  # M_MMAP_THRESHOLD, bytes
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def make_judge(name: str, device: str, quiet: bool = False) -> SentimentModel:
    """The judge. The bundled network runs on CUDA if the policy does, else on the CPU.

    A Hugging Face classifier runs on the policy's device, in bf16 on CUDA; `quiet` loads it without a
    progress bar.
    """
    if is_function(name):
        return load_function("--sentiment-model", name)
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if name == "vader":
        return load_sentiment_model(name)
    if name == "bundled":
        return load_sentiment_model(name, device=device.replace("auto", "cuda") if cuda else "cpu")
    if quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
    return load_sentiment_model(name, device=device, dtype="bfloat16" if cuda else "float32")


def make_env(args: EnvironmentArgs, judge: str | SentimentModel, num_envs: int) -> SB3VecEnv:
    """The environment of the command line, with `num_envs` rows."""
    arguments = with_functions(asdict(args) | {"num_envs": num_envs, "sentiment_model": judge})
    return SB3VecEnv(
        gym.make_vec("text_sentiment_env:TextSentiment-v0", autoreset_mode="SameStep", **arguments)
    )


def make_model(args: Args, env: SB3VecEnv, device: str) -> REINFORCE:
    """A new agent."""
    start = args.start
    if start.compile and get_device(device).type != "cuda":
        raise ValueError(f"--compile: it is for a GPU, and --device is {device}; leave it out")
    policy_kwargs: dict[str, Any] = {
        "optimizer_kwargs": {"eps": start.adam_eps, "weight_decay": 0.0, "fused": True},
        "cuda_graphs": start.cuda_graphs,
        "compile": start.compile,
    }
    if start.model == "random":
        policy_kwargs["config"] = GPT2Config(
            vocab_size=int(env.action_space.n),  # type: ignore[attr-defined]
            n_positions=env.observation_space.shape[0] + 1,  # type: ignore[index]
            n_embd=start.n_embd,
            n_layer=start.n_layer,
            n_head=start.n_head,
        )
        policy_kwargs["initial_length"] = start.initial_length
    return REINFORCE(
        GPT2Policy,
        env,
        pretrained=None if start.model == "random" else start.model,
        precision=start.precision,
        parallel=args.run.parallel,
        policy_kwargs=policy_kwargs,
        seed=args.run.seed,
        device=device,
        **asdict(args.reinforce),
    )


def load_model(args: Args, env: SB3VecEnv, device: str, folder: RunFolder) -> tuple[REINFORCE, str]:
    """The agent of the newest checkpoint, or a new one; and which it is."""
    if not folder.checkpoints():
        return make_model(args, env, device), "new"
    model, path = folder.load(
        env=env,
        device=device,
        parallel=args.run.parallel,
        micro_batch_size=args.reinforce.micro_batch_size,
    )
    if args.run.updates < model._n_updates:
        raise ValueError(
            f"--updates {args.run.updates}: {folder.path} is at update {model._n_updates} already; pass"
            " as many in all, or more to go on"
        )
    return model, f"{path.name}, update {model._n_updates}"


@dataclass
class Evaluator:
    """Measures texts of a model; every rank calls it, the first one measures.

    Attributes:
        args: the command line.
        env: whose rows are played.
        display: shows the progress.
        frontier: what KL can buy from the start model; None for a run without KL or of several prompts.
    """

    args: Args
    env: SB3VecEnv
    display: RunDisplay
    frontier: Frontier | None = None

    def measure_start(self, model: REINFORCE, folder: RunFolder) -> None:
        """Measures many texts of the start model, or reads them from the run's folder."""
        n = self.args.run.start_episodes
        if not (self.args.reinforce.kl_coef and n):
            return
        if (prompts := len(prompts_of(self.env))) > 1:
            self.display.console.print(
                f"no gap to the optimum: it is known for one prompt, and this run has {prompts}",
                soft_wrap=True,
            )
            return
        policy = self._whole_policy(model, model.reference)
        if distributed.rank() == 0:
            cache = folder.path / START_TEXTS
            judges = second_judges(self.args)
            with self.display.status("measuring the start model") as progress:
                self.frontier = start_frontier(policy, self.env, n, 0, judges, cache, progress)
            if not self.frontier.supports(self.args.reinforce.kl_coef):
                self.display.console.print(
                    f"no gap to the optimum: {n} texts of the start model are too few for it at this"
                    " KL weight; raise --start-episodes",
                    soft_wrap=True,
                )
        distributed.wait()

    def measure(self, model: REINFORCE, gpt2: GPT2, save_to: Path | None = None) -> dict[str, Any]:
        """Measures of fresh texts of `gpt2`; saves it before, if asked to."""
        policy = self._whole_policy(model, gpt2)
        if distributed.rank() == 0 and save_to is not None:
            policy.gpt2.save_pretrained(save_to)
        with self.display.status("evaluating") as progress:
            return evaluate(
                policy,
                model.reference,
                self.env,
                self.args.run.eval_episodes,
                seed=1000,
                judges=second_judges(self.args),
                progress=progress,
                frontier=self.frontier,
                kl_coef=self.args.reinforce.kl_coef,
            )

    def optimum(self) -> dict[str, dict[str, float]]:
        """The measures of the best policy at this KL weight, as an entry of the summary."""
        beta = self.args.reinforce.kl_coef
        if self.frontier is None or not self.frontier.supports(beta):
            return {}
        point = self.frontier.optimum(beta)
        own = {
            "kl": point.kl,
            "gap": 0.0,
            "effective_samples": point.effective_samples,
            "distinct_texts": self.frontier.distinct_texts(beta, self.args.run.eval_episodes),
        }
        return {"optimum": point.means | own}

    def _whole_policy(self, model: REINFORCE, gpt2: GPT2) -> GPT2Policy:
        """A policy with the weights of `gpt2`, on the first rank."""
        weights = distributed.full_state_dict(gpt2.state_dict())
        with torch.random.fork_rng(devices=[]):
            policy = GPT2Policy(**model.policy._get_constructor_parameters()).to(model.device)
        if distributed.rank() == 0:
            policy.gpt2.load_state_dict(weights)
        return policy


def measure_last_good(
    args: Args, env: SB3VecEnv, device: str, folder: RunFolder, evaluator: Evaluator
) -> tuple[REINFORCE, dict[str, Any]]:
    """Loads and measures the newest checkpoint from which texts can be drawn, or a new model.

    Finite weights may still give infinite logits: such checkpoints are set aside.
    """
    while True:
        model, _ = load_model(args, env, device, folder)
        measures, error = {}, None
        try:
            measures = evaluator.measure(model, model.policy.gpt2, folder.exported)
        except FloatingPointError as raised:
            error = raised
        if not any(distributed.gather_objects(error is not None)):
            return model, measures
        if not folder.checkpoints():
            raise error or FloatingPointError("another process drew from numbers that overflow")
        if distributed.rank() == 0:
            folder.set_aside(folder.checkpoints()[0])
        distributed.wait()


def introduction(model: REINFORCE, args: Args, origin: str, folder: RunFolder) -> str:
    """What is about to be trained, in a line."""
    parameters = sum(p.numel() for p in model.policy.gpt2.parameters())
    return (
        f"{args.start.model} GPT-2 ({origin}), {parameters:,} parameters,"
        f" {model.policy.config.vocab_size} tokens, on {model.device};"
        f" judge {args.environment.sentiment_model}; writing to {folder.path}"
    )


def second_judges(args: Args) -> dict[str, SentimentModel]:
    """The judges that training does not use."""
    seen = args.environment.sentiment_model == "vader"
    return {} if seen else {"vader": load_sentiment_model("vader")}
