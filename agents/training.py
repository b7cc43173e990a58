"""The main program: evaluate, train, evaluate again, and write what came out.

`examples/train_reinforce.py` and `python -m agents train` run it. Read `run` first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

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
from agents.callbacks import AppendingCSV, CheckpointCallback
from agents.display import ProbeCallback, RunDisplay
from agents.evaluation import evaluate
from agents.runs import RunFolder, StopSignals
from text_sentiment_env import SentimentModel, load_sentiment_model

OUR_JUDGES = ("vader", "bundled")

# ------------------------------------------------------------------------------------------- parts


def make_judge(name: str, device: str) -> str | SentimentModel:
    """The judge; a network goes where the policy is, one of Hugging Face in bf16 on CUDA."""
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if name == "bundled" and cuda:
        return load_sentiment_model("bundled", device=device.replace("auto", "cuda"))
    if name in OUR_JUDGES:
        return name
    return load_sentiment_model(name, device=device, dtype="bfloat16" if cuda else "float32")


def make_env(args: EnvironmentArgs, judge: str | SentimentModel, num_envs: int) -> SB3VecEnv:
    """The environment of the command line, with `num_envs` rows."""
    arguments = asdict(args) | {"num_envs": num_envs, "sentiment_model": judge}
    return SB3VecEnv(
        gym.make_vec("text_sentiment_env:TextSentiment-v0", autoreset_mode="SameStep", **arguments)
    )


def make_model(args: Args, env: SB3VecEnv, device: str) -> REINFORCE:
    """A new agent."""
    start = args.start
    policy_kwargs: dict[str, Any] = {"cuda_graphs": start.cuda_graphs}
    if start.model == "random":
        policy_kwargs["config"] = GPT2Config(
            vocab_size=int(env.action_space.n),  # type: ignore[attr-defined]
            n_positions=env.observation_space.shape[0] + 1,  # type: ignore[index]
            n_embd=start.n_embd,
            n_layer=start.n_layer,
            n_head=start.n_head,
        )
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
    return model, f"{path.name}, update {model._n_updates}"


def measure(
    model: REINFORCE,
    gpt2: GPT2,
    env: SB3VecEnv,
    args: Args,
    display: RunDisplay,
    save_to: Path | None = None,
) -> dict[str, Any]:
    """Measures of fresh texts of `gpt2`, on the first rank; saves it before, if asked to."""
    weights = distributed.full_state_dict(gpt2.state_dict())
    with torch.random.fork_rng(devices=[]):
        policy = GPT2Policy(**model.policy._get_constructor_parameters()).to(model.device)
    if distributed.rank() == 0:
        policy.gpt2.load_state_dict(weights)
        if save_to is not None:
            policy.gpt2.save_pretrained(save_to)
    with display.status("evaluating") as progress:
        judges = second_judges(args)
        n = args.run.eval_episodes
        return evaluate(policy, model.reference, env, n, 1000, judges, progress)


def measure_last_good(
    args: Args,
    envs: tuple[SB3VecEnv, SB3VecEnv],
    device: str,
    folder: RunFolder,
    display: RunDisplay,
    save_to: Path,
) -> tuple[REINFORCE, dict[str, Any]]:
    """The newest checkpoint that texts can be drawn from, or a new model; and its measures.

    Weights may be finite, and their logits not: such checkpoints are set aside.
    """
    env, eval_env = envs
    while True:
        model, _ = load_model(args, env, device, folder)
        measures, error = {}, None
        try:
            measures = measure(model, model.policy.gpt2, eval_env, args, display, save_to)
        except FloatingPointError as raised:
            error = raised
        if not any(distributed.gather_objects(error is not None)):
            return model, measures
        if not folder.checkpoints():
            raise error or FloatingPointError("another process drew from numbers that overflow")
        if distributed.rank() == 0:
            folder.set_aside(folder.checkpoints()[0])
        distributed.wait()


def second_judges(args: Args) -> dict[str, SentimentModel]:
    """The judges that training does not use."""
    seen = args.environment.sentiment_model == "vader"
    return {} if seen else {"vader": load_sentiment_model("vader")}


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
    device = distributed.join(args.run.device)
    first = distributed.rank() == 0  # which alone prints and writes
    folder = RunFolder(distributed.gather_objects(args.run.out)[0])  # the first rank's choice
    console = Console(quiet=args.run.quiet or not first)
    display = RunDisplay(console)
    with folder.locked() if first else nullcontext():
        distributed.wait()
        if folder.checkpoints() and not args.run.resume:
            raise ValueError(f"--out {folder.path} holds a run: add --resume, or choose another")
        with display.status("loading judge and model"):
            judge = make_judge(args.environment.sentiment_model, device)
            rows = args.environment.num_envs
            env = make_env(args.environment, judge, rows // distributed.world_size())
            eval_env = make_env(args.environment, judge, rows) if first else env
            model, origin = load_model(args, env, device, folder)
        settings = {k: v for k, v in args.flat().items() if k not in ("resume", "out")}
        resumed_at = model._n_updates if args.run.resume else None
        changes = folder.record(settings, resumed_at)
        parameters = sum(p.numel() for p in model.policy.gpt2.parameters())
        console.print(
            f"{args.start.model} GPT-2 ({origin}), {parameters:,} parameters,"
            f" {env.action_space.n} tokens, on {model.device};"  # type: ignore[attr-defined]
            f" judge {args.environment.sentiment_model}; writing to {folder.path}",
            highlight=False,
            soft_wrap=True,
        )

        before = measure(model, model.reference, eval_env, args, display)
        tokens, training = model.num_timesteps, time.perf_counter()
        error = train(model, args, folder, display, judge, stop)
        tokens, seconds = model.num_timesteps - tokens, time.perf_counter() - training
        save_to = folder.path / "gpt2"
        if error:  # its weights are not to be trusted
            envs = env, eval_env
            model, after = measure_last_good(args, envs, device, folder, display, save_to)
        else:
            after = measure(model, model.policy.gpt2, eval_env, args, display, save_to)
        status = 1 if error else max(distributed.gather_objects(stop.status))
        if not first:
            return status
        folder.remove_old(args.run.keep)  # a run that was killed may have left more
        summary = {
            "arguments": settings | {"out": str(folder.path)},
            "changes": changes,
            "resumed_at": resumed_at,
            "versions": report.versions(),
            "hardware": report.hardware(model.device),
            "parameters": parameters,
            "updates": model._n_updates,
            "episodes": model._episode_num,
            "tokens": model.num_timesteps,
            "seconds": round(seconds, 2),  # of this call's training alone
            "total_seconds": round(time.perf_counter() - began, 2),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "error": error,
        }
        write_results(folder, summary, before, after, judge, console)
        return status


def train(
    model: REINFORCE,
    args: Args,
    folder: RunFolder,
    display: RunDisplay,
    judge: str | SentimentModel,
    stop: StopSignals,
) -> str | None:
    """Trains to --updates, or to a signal; returns the error if a number was not finite."""
    done, updates, console = model._n_updates, args.run.updates, display.console
    outputs: list[KVWriter] = []
    if distributed.rank() == 0:
        outputs += [AppendingCSV(folder.path / "progress.csv", done), display]
        if args.run.tensorboard:
            outputs.append(TensorBoardOutputFormat(str(folder.path / "tensorboard")))
    model.set_logger(Logger(str(folder.path), outputs))

    def request_stop() -> None:
        model.request_stop()
        console.quiet |= stop.status == 129  # the terminal is gone
        console.print("stopping after this update; Ctrl-C again to stop at once")

    try:
        if done < updates:
            save = CheckpointCallback(
                lambda model: folder.save(model, args.run.keep), args.run.save_every
            )
            scores = load_sentiment_model(judge) if isinstance(judge, str) else judge
            probe = ProbeCallback(display, scores, second_judges(args).get("vader"))
            with stop.deferred(request_stop), display.training(done, updates):
                model.learn(
                    updates * args.environment.num_envs * args.environment.max_tokens,
                    CallbackList([save, probe]),
                    reset_num_timesteps=not args.run.resume,
                    total_updates=updates - done,
                )
            if model._n_updates < updates:
                console.print(
                    f"stopped after {model._n_updates} updates; --resume goes on from there"
                )
        return None
    except FloatingPointError as error:
        # This batch's random numbers are spent: the last checkpoint stays as it is.
        if distributed.rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        return str(error)
    finally:
        model.logger.close()


def write_results(
    folder: RunFolder,
    summary: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    judge: str | SentimentModel,
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
    model_card.write(folder.path / "gpt2", summary)
    page.write(folder.path, load_sentiment_model(judge) if isinstance(judge, str) else judge)
    report.show(console, summary, *samples)
