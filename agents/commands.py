"""What one does with a trained model: write with it, judge it, compare it, play against it."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from agents import cli, figures, page, report
from agents.arguments import Args, EnvironmentArgs
from agents.atomic import atomic_write
from agents.callbacks import UPDATES, read_rows
from agents.display import sparkline
from agents.evaluation import evaluate
from agents.generation import generate_text, vocabulary_of
from agents.gpt2 import GPT2
from agents.policy import GPT2Policy
from agents.reinforce import REINFORCE
from agents.runs import RunFolder
from agents.sb3_vec_env import SB3VecEnv
from text_sentiment_env import load_sentiment_model

Run = tyro.conf.Positional[str]


def load_models(run: str) -> tuple[GPT2, GPT2, EnvironmentArgs]:
    """A run's model, the model that it started from, and its environment.

    Args:
        run: a run's folder, a checkpoint, a directory in Hugging Face's format, or `"reviews"`. The
            last two start from themselves, in the default environment.

    Raises:
        FileNotFoundError: if there is no such run.
    """
    path = Path(run)
    folder = RunFolder(path)
    if path.suffix == ".zip" or folder.checkpoints():
        file = folder.checkpoints()[0] if path.is_dir() else path
        model = REINFORCE.load(file)
        environment = EnvironmentArgs()
        if (file.parent / "arguments.json").is_file():
            recorded = RunFolder(file.parent).read_arguments()
            environment = cli.from_values(Args, recorded).environment
        return model.policy.gpt2, model.reference, environment
    gpt2 = GPT2.from_pretrained(run)
    return gpt2, gpt2, EnvironmentArgs()


@dataclass
class Generate:
    """Write texts with a model."""

    run: Run = "reviews"
    """a run's folder, a checkpoint, a directory in Hugging Face's format, or reviews"""
    prompt: tyro.conf.Positional[str] = ""
    """beginning of every text"""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 5
    """texts to write"""
    max_tokens: int = 20
    """the most tokens to add"""
    temperature: float = 1.0
    """divides the logits"""
    top_k: int | None = None
    """draw among the likeliest only"""
    greedy: bool = False
    """take the likeliest token instead of a draw"""
    seed: int | None = None
    """seed of the draws; default: other texts every time"""

    def __call__(self) -> None:
        """Prints one text a line."""
        gpt2, _, _ = load_models(self.run)
        arguments = {k: v for k, v in asdict(self).items() if k not in ("run", "prompt", "n")}
        for text in generate_text(gpt2, self.prompt, self.n, **arguments):
            print(text.strip().replace("\n", " "))


@dataclass
class Evaluate:
    """Judge fresh texts of a model: reward, second judges, KL, diversity, best and worst texts."""

    run: Run = "reviews"
    """a run's folder, a checkpoint, a directory in Hugging Face's format, or reviews"""
    episodes: int = 1000
    """texts to write"""
    seed: int = 1000
    """seed of the texts"""
    judge: str | None = None
    """a further sentiment model: an id of the hub or a directory"""
    show: int = 5
    """best and worst texts to print"""
    json: Path | None = None
    """also write all measures and texts to this file"""

    def __call__(self) -> None:
        """Prints a table and texts."""
        cli.positive(self, "episodes")
        result = self.measure()
        samples = sorted(result["samples"], key=lambda sample: -sample["reward"])
        console = Console()
        table = Table(
            "measure", "mean", "95 % interval", title=f"{self.episodes} texts of {self.run}"
        )
        for name, value in result.items():
            if isinstance(value, int | float) and name not in ("episodes", "reward_standard_error"):
                table.add_row(name, f"{value:.3f}", _interval([s.get(name) for s in samples]))
        console.print(table)
        for title, chosen in (("best", samples[: self.show]), ("worst", samples[-self.show :])):
            table = Table("reward", "text", title=title)
            for sample in chosen if self.show else ():
                table.add_row(f"{sample['reward']:+.2f}", escape(sample["text"].strip()))
            console.print(table)
        if self.json is not None:
            with atomic_write(self.json) as temporary:
                temporary.write_text(json.dumps({"run": self.run, **result}, indent=2), "utf-8")

    def measure(self) -> dict[str, Any]:
        """The measures of `agents.evaluation.evaluate`."""
        gpt2, reference, arguments = load_models(self.run)
        vocabulary = vocabulary_of(gpt2)
        values = asdict(arguments) | {"vocabulary": vocabulary, "num_envs": 64}
        env = SB3VecEnv(
            gym.make_vec("text_sentiment_env:TextSentiment-v0", autoreset_mode="SameStep", **values)
        )
        spaces = env.observation_space, env.action_space
        policy = GPT2Policy(*spaces, lambda _: 0.0, config=gpt2.config)
        policy.gpt2.load_state_dict(gpt2.state_dict())
        names = {"vader", *([self.judge] if self.judge else [])} - {arguments.sentiment_model}
        judges = {name: load_sentiment_model(name) for name in sorted(names)}
        return evaluate(policy, reference, env, self.episodes, self.seed, judges)


def _interval(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return ""
    half = 1.96 * float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers))
    return f"± {half:.3f}"


@dataclass
class Compare:
    """Compare finished runs: a table, and a figure of their learning curves."""

    runs: tyro.conf.Positional[list[Path]]
    """folders of runs"""
    figure: Path = Path("compare.png")
    """where to draw the learning curves"""

    def __call__(self) -> None:
        """Prints the table and draws the figure."""
        summaries = {run: _read_summary(run) for run in self.runs}
        table = Table("run", *report.MEASURES, title="After training, fresh texts")
        rows = {str(run): summary["after"] for run, summary in summaries.items()}
        for run, after in rows.items():
            table.add_row(run, *(_number(after.get(name)) for name in report.MEASURES))
        if len(rows) > 1:
            columns = [[after.get(name) for after in rows.values()] for name in report.MEASURES]
            table.add_section()
            table.add_row("mean", *map(_mean_and_error, columns))
        Console().print(table)
        logs = {str(run): run / "progress.csv" for run in self.runs}
        figures.write_sheet(figures.compare_runs(logs), self.figure)
        print(f"learning curves: {self.figure}")


def _read_summary(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "summary.json").read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{run} holds no summary.json: name the folder of a finished run"
        ) from None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _mean_and_error(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return ""
    error = float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers))
    return f"{np.mean(numbers):.3f} ± {error:.3f}"


@dataclass
class Play:
    """Write a text by hand, token by token, and get the reward: the decision process as a game."""

    run: Run = "reviews"
    """whose likeliest tokens are offered"""
    choices: int = 9
    """how many of them"""

    def __call__(self, ask: Callable[[str], str] = input) -> None:
        """Asks for one token after another until the text ends; `ask` prompts for a line."""
        gpt2, _, arguments = load_models(self.run)
        vocabulary = vocabulary_of(gpt2)
        values = asdict(arguments) | {"vocabulary": vocabulary}
        values.pop("num_envs")
        env = gym.make("text_sentiment_env:TextSentiment-v0", **values)
        observation, info = env.reset()
        print(
            "A number writes that token, any text writes its tokens, an empty line ends the text."
        )
        ended, reward = False, 0.0
        while not ended:
            text = observation[observation < vocabulary.pad_index].tolist()
            for token in self._asked(gpt2, [vocabulary.end_index, *text], vocabulary, ask):
                observation, paid, ended, _, info = env.step(token)
                reward += float(paid)
                if ended:
                    break
        terms = ("sentiment", "length", "length_penalty", "repetition_penalty")
        print(f"\n{info['text'].strip()}\nreward {reward:+.3f}")
        print("  ".join(f"{name} {info[name]:.3f}" for name in terms))

    def _asked(
        self, gpt2: GPT2, ids: list[int], vocabulary: Any, ask: Callable[[str], str]
    ) -> list[int]:
        """The tokens of one answer."""
        with torch.no_grad():
            p = gpt2(torch.tensor([ids]))[0, -1].float().softmax(-1)
        likeliest = p.topk(min(self.choices, len(p)))
        print(f"\n{vocabulary.decode(ids[1:])}▏")
        for i, (chance, token) in enumerate(zip(*map(torch.Tensor.tolist, likeliest), strict=True)):
            word = "(end)" if token == vocabulary.end_index else repr(vocabulary.decode([token]))
            print(f"  {i + 1} {word} {chance:.0%}")
        while True:
            answer = ask("> ")
            if not answer:
                return [vocabulary.end_index]
            if answer.isdecimal() and 1 <= int(answer) <= len(likeliest.indices):
                return [int(likeliest.indices[int(answer) - 1])]
            try:
                return vocabulary.encode(answer).tolist()
            except ValueError as error:
                print(error)


@dataclass
class Watch:
    """Follow a run that is under way, or look at one that has ended."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    once: bool = False
    """show it once, and do not wait for more"""

    def __call__(self) -> None:
        """Shows the log until the run has ended, or Ctrl-C."""
        if not self.run.is_dir():
            raise ValueError(f"{self.run} is no folder of a run")
        with Live(self._table(), refresh_per_second=2) as live:
            while not self.once and not (self.run / "summary.json").exists():
                time.sleep(1)
                live.update(self._table())

    def _table(self) -> Table:
        rows = read_rows(self.run / "progress.csv")
        updates = rows[-1][UPDATES] if rows else "0"
        table = Table("", "now", "course", title=f"{self.run}: update {updates}")
        for title, column, _ in report.PANELS:
            values = [float(row[column]) for row in rows if row.get(column)]
            if values:
                table.add_row(title, f"{values[-1]:.3f}", sparkline(values))
        return table


@dataclass
class Report:
    """Draw a finished run again: report.html and its pictures."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""

    def __call__(self) -> None:
        """Writes the files and says where the page is."""
        judge = _read_summary(self.run)["arguments"]["sentiment_model"]
        page.write(self.run, load_sentiment_model(judge))
        print(self.run / "report.html")


@dataclass
class Info:
    """Versions and what is at hand, for a bug report."""

    def __call__(self) -> None:
        """Prints it."""
        packages = ("gymnasium", "stable-baselines3", "torch", "transformers", "tiktoken", "numpy")
        lines = {
            "text-sentiment-env": report.versions()["text_sentiment_env"],
            "Python": f"{platform.python_version()} on {platform.platform()}",
            **{name: metadata.version(name) for name in packages},
            "environment": "TextSentiment-v0"
            if "TextSentiment-v0" in gym.registry
            else "not registered",
            "vocabularies": "small, reviews, gpt2, or a list of tokens",
            "judges": "bundled, vader, or a Hugging Face classifier",
            "CUDA": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "threads": str(torch.get_num_threads()),
        }
        for name, value in lines.items():
            print(f"{name:20s}{value}")
