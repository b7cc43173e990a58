"""Time to quality: seconds until a policy is near the exact optimum, with this package's REINFORCE and with rivals.

All begin from the bundled GPT-2 and have one aim, that of the default run (preset reviews): the reward, by the same
judge and length penalty, less β times the KL. How far a policy is from its optimum, the gap in nats per text, is known
from the start model's texts (`agents/frontier.py`). The rivals are a hand-written loop on transformers, TRL's RLOO
(`pip install -e ".[bench]"`) and stable-baselines3's PPO on our GPT2Policy. Every run is a process of its own;
contenders take turns, seed by seed. Between updates the clock stops and fresh texts are measured, with the same code
for all.

Each run is a line of OUT/runs.jsonl. The same command goes on where it was stopped; runs of other settings, of
another judge or of another start model are kept, and stand in rows of their own. With --seeds 0 it prints the table
alone.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_quality.py --out runs/quality
OMP_NUM_THREADS=1 python tests/benchmarks/bench_quality.py --contenders trl --seeds 1 --learning-rate 3e-4 --out runs/scan
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched

import torch
import transformers
from common import setting
from rivals import HuggingFaceLoop, trl_trainer
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

import agents
import text_sentiment_env
from agents import GPT2, GPT2Policy
from agents.arguments import PRESETS, Args
from agents.evaluation import evaluate
from agents.frontier import START_TEXTS, start_frontier
from agents.pretrained import convert_weights
from agents.training import make_env, make_model
from text_sentiment_env import RewardFunction

# A process's own CPU time is not disturbed by what else the machine does; of one thread it is the wall
# time of an idle core. It begins at 0, with the process.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.time, "cpu": time.process_time}
MEASURES = ("gap", "sentiment", "kl", "length", "distinct_texts", "reward", "perplexity")
PACKAGES = ("torch", "transformers", "stable-baselines3", "trl")
# What is not the default run's: the learning rates of README.md's scan.
OWN: dict[str, dict[str, Any]] = {
    **{name: {"learning_rate": 1e-3} for name in ("ours", "hand", "trl")},
    "ppo": {"learning_rate": 3e-4, "n_epochs": 2, "batch_size": 512},
}
NAMES = {
    "ours": "REINFORCE (this package)",
    "hand": "hand-written loop on transformers",
    "trl": "RLOO of TRL",
    "ppo": "PPO of SB3, with GPT2Policy",
}


class Meter:
    """The clock of a run, which stops between updates to measure fresh texts; and what it found.

    Attributes:
        points: a dict for each measurement: `seconds` of training, `tokens` written, and `MEASURES`.
        start_up: seconds from the start of the process to the first update.
    """

    def __init__(
        self, preset: Args, settings: Mapping[str, Any], launched: float, folder: Path
    ) -> None:
        """`launched`: when the process was started, on the same clock; `folder`: for the start model's texts."""
        self.now = CLOCKS[settings["clock"]]
        self.preset, self.settings, self._launched = preset, settings, launched
        self._cache = folder / START_TEXTS
        self.points: list[dict[str, float]] = []

    def start(self) -> None:
        """Starts the clock: what comes now is training."""
        self.start_up = self.now() - self._launched
        environment = self.preset.environment
        self.env = make_env(environment, environment.sentiment_model, environment.num_envs)
        self.reference = start_model(self.preset).requires_grad_(False)
        spaces = self.env.observation_space, self.env.action_space
        with torch.random.fork_rng(devices=[]):  # the trained model's random numbers stay
            self.policy = GPT2Policy(*spaces, lambda _: 0.0, config=self.reference.config)
        self.policy.gpt2.load_state_dict(self.reference.state_dict())
        episodes = self.preset.run.start_episodes
        self.frontier = start_frontier(self.policy, self.env, episodes, cache=self._cache)
        self._began, self._paused, self._measured = self.now(), 0.0, 0

    def go_on(self, weights: Mapping[str, Tensor], tokens: int) -> bool:
        """To be called after each update; measures if it is time to, and says whether to go on.

        Args:
            weights: the policy's, in our layout.
            tokens: written so far, `<|endoftext|>` included.
        """
        stopped = self.now()
        seconds = stopped - self._began - self._paused
        over = seconds >= self.settings["cap"]
        if over or tokens - self._measured >= self.settings["every"]:
            self._measured = tokens
            over |= self._measure(weights, seconds, tokens)
            self._paused += self.now() - stopped
        return not over

    def end(self, weights: Mapping[str, Tensor], tokens: int) -> None:
        """To be called after the last update, which is measured too."""
        seconds = self.now() - self._began - self._paused
        if not self.points or self.points[-1]["tokens"] < tokens:
            self._measure(weights, seconds, tokens)

    def _measure(self, weights: Mapping[str, Tensor], seconds: float, tokens: int) -> bool:
        """Keeps a measurement; returns whether it is the last one."""
        self.policy.gpt2.load_state_dict(weights)
        result = evaluate(
            self.policy,
            self.reference,
            self.env,
            self.settings["eval_episodes"],
            seed=1000,
            frontier=self.frontier,
            kl_coef=self.settings["kl_coef"],
        )
        point = {name: result[name] for name in MEASURES}
        self.points.append({"seconds": seconds, "tokens": tokens} | point)
        print(*(f"{name} {value:.2f}" for name, value in self.points[-1].items()), flush=True)
        return point["gap"] <= self.settings["gap"]


# -------------------------------------------------------------------------------------- contenders


def start_model(preset: Args) -> GPT2:
    """The GPT-2 that all begin from; its vocabulary is the environment's."""
    return GPT2.from_pretrained(preset.start.model)


def reward_function(preset: Args) -> RewardFunction:
    """The environment's reward, for those who write the texts themselves."""
    env = preset.environment
    return RewardFunction(
        vocabulary=env.vocabulary,
        max_tokens=env.max_tokens,
        sentiment_model=env.sentiment_model,
        reward_type=env.reward_type,
        target=env.target,
        length_penalty=env.length_penalty,
        target_length=env.target_length,
        repetition_penalty=env.repetition_penalty,
    )


class AfterUpdates(BaseCallback):
    """Lets the meter look after each update of an algorithm of stable-baselines3."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter, self.going = meter, True

    def _on_training_start(self) -> None:
        self.meter.start()

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps:
            self.going = self.meter.go_on(*self._state())

    def _on_step(self) -> bool:
        return self.going

    def _on_training_end(self) -> None:
        if self.going:
            self.meter.end(*self._state())

    def _state(self) -> tuple[dict[str, Tensor], int]:
        return self.model.policy.gpt2.state_dict(), self.model.num_timesteps


def run_ours(preset: Args, settings: Mapping[str, Any], meter: Meter) -> None:
    """The default run's training."""
    preset.reinforce.learning_rate = settings["learning_rate"]
    preset.reinforce.kl_coef = settings["kl_coef"]
    preset.reinforce.warmup_updates = 0  # as the rivals
    rows = preset.environment.num_envs
    env = make_env(preset.environment, preset.environment.sentiment_model, rows)
    model = make_model(preset, env, "cpu")
    model.learn(callback=AfterUpdates(meter), total_updates=settings["updates"])


def run_hand(preset: Args, settings: Mapping[str, Any], meter: Meter) -> None:
    """The hand-written loop, with a cosine schedule."""
    torch.manual_seed(preset.run.seed)
    gpt2, env, reward = start_model(preset), preset.environment, reward_function(preset)
    with tempfile.TemporaryDirectory() as folder:
        gpt2.save_pretrained(folder)
        loop = HuggingFaceLoop(
            folder,
            reward.task.vocabulary,
            env.num_envs,
            env.max_tokens,
            "cpu",
            half=False,
            reward=reward,
            kl_coef=settings["kl_coef"],
            learning_rate=settings["learning_rate"],
        )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, settings["updates"])
    meter.start()
    for _ in range(settings["updates"]):
        loop.update()
        schedule.step()
        if not meter.go_on(our_weights(loop.policy, gpt2), loop.tokens):
            return
    meter.end(our_weights(loop.policy, gpt2), loop.tokens)


def run_trl(preset: Args, settings: Mapping[str, Any], meter: Meter) -> None:
    """TRL's RLOO, with its own cosine schedule."""
    gpt2, env, reward = start_model(preset), preset.environment, reward_function(preset)
    written = 0

    def counted(completion_ids: list[list[int]], **others: Any) -> list[float]:
        nonlocal written
        written += sum(map(len, completion_ids))
        return reward(completion_ids=completion_ids, **others)

    class Watch(transformers.TrainerCallback):
        """Lets the meter look after each update."""

        going = True

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            self.going = meter.go_on(our_weights(model, gpt2), written)
            control.should_training_stop |= not self.going

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            if self.going:
                meter.end(our_weights(model, gpt2), written)

    with tempfile.TemporaryDirectory() as folder:
        gpt2.save_pretrained(folder)
        trl_trainer(
            folder,
            env.num_envs,
            env.max_tokens,
            settings["updates"],
            "cpu",
            half=False,
            callback=Watch(),
            reward=counted,
            kl_coef=settings["kl_coef"],
            learning_rate=settings["learning_rate"],
            lr_decay="cosine",
            seed=preset.run.seed,
        ).train()


def run_ppo(preset: Args, settings: Mapping[str, Any], meter: Meter) -> None:
    """PPO, which knows no start model and so no KL; it trains until the cap."""
    gpt2, rows = start_model(preset), preset.environment.num_envs
    model = PPO(
        GPT2Policy,
        make_env(preset.environment, preset.environment.sentiment_model, rows),
        settings["learning_rate"],
        n_steps=preset.environment.max_tokens,
        batch_size=settings["batch_size"],
        n_epochs=settings["n_epochs"],
        gamma=1.0,
        policy_kwargs={"config": gpt2.config.to_dict()},
        seed=preset.run.seed,
        device="cpu",
    )
    model.policy.gpt2.load_state_dict(gpt2.state_dict())
    model.learn(10**9, AfterUpdates(meter))


def our_weights(model: transformers.GPT2LMHeadModel, gpt2: GPT2) -> dict[str, Tensor]:
    """The weights of transformers' GPT-2 in the layout of ours."""
    return convert_weights(model.state_dict(), gpt2.state_dict(), torch.float32)


RUNS: dict[str, Callable[[Args, Mapping[str, Any], Meter], None]] = {
    **{"ours": run_ours, "hand": run_hand, "trl": run_trl, "ppo": run_ppo}
}


# -------------------------------------------------------------------------------------------- runs


def settings_of(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """All that shapes a run, but for its seed."""
    preset = PRESETS["reviews"]
    settings: dict[str, Any] = {
        "learning_rate": preset.reinforce.learning_rate,
        "kl_coef": preset.reinforce.kl_coef,
        **{name: getattr(args, name) for name in ("gap", "cap", "every", "clock")},
        **{"eval_episodes": args.eval_episodes, "threads": torch.get_num_threads()},
        "environment": vars(preset.environment)
        | {"target_length": [*preset.environment.target_length]}
        | ({} if args.num_envs is None else {"num_envs": args.num_envs}),
        "files": {
            "judge": digest(
                Path(text_sentiment_env.__file__).parent / "data" / "judge.safetensors"
            ),
            "model": digest(
                Path(agents.__file__).parent / "data" / "reviews" / "model.safetensors"
            ),
        },
    }
    if contender != "ppo":
        settings["updates"] = preset.run.updates
    settings |= OWN[contender]
    given = ("learning_rate", "kl_coef", "updates", "n_epochs", "batch_size")
    chosen = {name: getattr(args, name) for name in given}
    return settings | {k: v for k, v in chosen.items() if k in settings and v is not None}


def digest(path: Path) -> str:
    """The beginning of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def run(
    contender: str, seed: int, settings: dict[str, Any], launched: float, folder: Path
) -> dict[str, Any]:
    """One training, in a new process."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    preset = copy.deepcopy(PRESETS["reviews"])
    preset.run.seed = seed
    preset.environment.num_envs = settings["environment"]["num_envs"]
    preset.start.precision, preset.start.adam_eps = "fp32", 1e-8  # as the rivals
    meter = Meter(preset, settings, launched, folder)
    RUNS[contender](preset, settings, meter)
    versions = {name: version(name) for name in PACKAGES if contender == "trl" or name != "trl"}
    row = {"contender": contender, "seed": seed, "settings": settings, "versions": versions}
    return row | {"start_up": meter.start_up, "points": meter.points}


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs asked for, seed by seed; returns all that OUT/runs.jsonl holds."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "runs.jsonl"
    rows = (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )
    for seed in range(args.seeds):
        for contender in args.contenders:
            settings = settings_of(contender, args)
            key = {"contender": contender, "seed": seed, "settings": settings}
            if any(key.items() <= row.items() for row in rows):
                continue
            print(f"{contender}, seed {seed}", flush=True)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                launched = time.time() if args.clock == "wall" else 0.0
                row = pool.submit(run, contender, seed, settings, launched, args.out).result()
            rows.append(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return rows


# ------------------------------------------------------------------------------------------ report


def first(run: Mapping[str, Any]) -> dict[str, float] | None:
    """The first measurement that is good enough."""
    return next((p for p in run["points"] if p["gap"] <= run["settings"]["gap"]), None)


def spread(values: Sequence[float], form: str) -> str:
    """Median, with the least and the largest."""
    if not values:
        return "–"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def cells(runs: Sequence[Mapping[str, Any]], ours: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """A row of the table: the runs of one contender with the same settings."""
    settings = runs[0]["settings"]
    there = [(run, point) for run in runs if (point := first(run))]

    def at(measure: str, form: str) -> str:
        return spread([point[measure] for _, point in there], form)

    ratios = [
        point["seconds"] / our["seconds"]
        for run, point in there
        if run["seed"] in ours and (our := first(ours[run["seed"]]))
    ]
    own = ("learning_rate", "kl_coef", "updates", "n_epochs", "batch_size")
    return [
        NAMES[runs[0]["contender"]],
        ", ".join(f"{name} {settings[name]:g}" for name in own if name in settings),
        f"{len(there)} of {len(runs)}",
        at("seconds", ".0f"),
        spread([point["seconds"] + run["start_up"] for run, point in there], ".0f"),
        spread(ratios, ".1f"),
        at("tokens", ",.0f"),
        at("sentiment", ".2f"),
        at("kl", ".2f"),
        at("length", ".1f"),
        at("distinct_texts", ".1%"),
        spread([min(point["gap"] for point in run["points"]) for run in runs], ".2f"),
    ]


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Prints the table in Markdown: a row for each contender and its settings."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row["contender"], row["settings"]]), []).append(row)
    wanted = settings_of("ours", args)
    ours = {r["seed"]: r for r in rows if r["contender"] == "ours" and r["settings"] == wanted}
    columns = ["", "settings", f"gap ≤ {args.gap:g}", "s of training", "s in all", "its s / ours"]
    columns += ["tokens", "sentiment", "KL", "length", "distinct texts", "least gap"]
    print(f"\nMedian (least to largest) over seeds; {setting('cpu')}\n")
    print("| " + " | ".join(columns) + " |")
    print("|---|---|" + "---:|" * (len(columns) - 2))
    for runs in groups.values():
        print("| " + " | ".join(cells(runs, ours)) + " |")


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, …")
    parser.add_argument(
        "--gap", type=float, default=2.4, help="nats per text from the optimum, where a run ends"
    )
    parser.add_argument("--cap", type=float, default=600, help="seconds of training")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of the process"
    )
    parser.add_argument("--every", type=int, default=2500, help="tokens from measurement to next")
    parser.add_argument("--eval-episodes", type=int, default=512, help="texts of a measurement")
    for name in ("learning-rate", "kl-coef"):
        parser.add_argument(f"--{name}", type=float, help="instead of the contender's own")
    for name in ("num-envs", "updates", "n-epochs", "batch-size"):
        parser.add_argument(f"--{name}", type=int, help="likewise")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="folder of runs.jsonl"
    )
    args = parser.parse_args()
    show(run_all(args), args)


if __name__ == "__main__":
    main()
