"""A run in the terminal: a live view, or plain lines where there is no terminal."""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from agents.callbacks import UPDATES
from agents.logs import PROJECT
from agents.report import MEASURES, Measure, measure_rows
from agents.runs import RunFolder
from text_sentiment_env import SentimentModel

BARS = "▁▂▃▄▅▆▇█"
# Title, column of the log, format.
SHOWN = (
    *("reward", "sentiment", "length_penalty", "repetition_penalty", "vader"),
    *("kl", "perplexity", "entropy", "length", "distinct_texts"),
)
ROWS = (
    *(MEASURES[name] for name in SHOWN),
    Measure("speed", "tokens per second", ",.0f", column="time/fps"),
)
# What a run leaves in its folder.
FILES = (
    ("report.html", "the run on one page, for a browser"),
    ("samples.md", "texts before and after, side by side"),
    ("evaluation.png", "rewards and lengths; second judge and frontier, where there are any"),
    ("learning_curves.png", "reward, KL and the like by update"),
    ("progress.csv", "everything logged, by update"),
    ("monitor.csv", "every text's reward and length, for SB3's plotters"),
    ("summary.json", "arguments, versions, measures before and after"),
    ("gpt2", "the trained model, for transformers and for agents.GPT2"),
    ("checkpoint.zip", "everything needed to go on"),
)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A line of bars for values of any number; more than `width` are averaged in groups."""
    groups = np.array_split(np.asarray(values, float), min(width, len(values)))
    means = np.array([group.mean() for group in groups])
    span = means.max() - means.min()
    heights = (means - means.min()) / span if span else np.zeros(len(means))
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


class RunDisplay(KVWriter):
    """Shows a run's log as it grows; one of the logger's outputs.

    In a terminal it is one live view: a bar with the time left, every measure with its course, and
    sample texts. Elsewhere it prints about twenty lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.samples: list[Text] = []
        self._series: dict[str, list[float]] = defaultdict(list)
        self._live: Live | None = None
        self._updates = self._done = self._first = 0
        self._began = 0.0

    @contextmanager
    def status(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Says what is under way; yields a function that takes how much of it is done."""
        if not self.console.is_terminal:
            yield lambda done, total: None
            return
        with self.console.status(text) as status:
            yield lambda done, total: status.update(f"{text} {done}/{total}")

    @contextmanager
    def training(self, done: int, updates: int) -> Iterator[None]:
        """Within, shows the training from update `done` to `updates`."""
        self._done, self._first, self._updates = done, done, updates
        self._began = time.perf_counter()
        if not self.console.is_terminal or self.console.quiet:
            yield
            return
        columns = (
            TextColumn("update"),
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self.console)
        self._task = self._progress.add_task("", completed=done, total=updates)
        with Live(self._view(), console=self.console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Shows one update's log."""
        self._done = int(key_values[UPDATES])
        for measure in ROWS:
            if measure.column in key_values:
                self._series[measure.column].append(float(key_values[measure.column]))
        if self._live is not None:
            self._progress.update(self._task, completed=self._done)
            self._live.update(self._view())
        elif self._done % max(1, self._updates // 20) == 0 or self._done == self._updates:
            self.console.print(self._line(key_values), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Does nothing: the view ends with `training`."""

    def _line(self, values: Mapping[str, Any]) -> str:
        seconds = time.perf_counter() - self._began
        left = seconds / max(1, self._done - self._first) * (self._updates - self._done)
        parts = [
            f"update {self._done:4d}/{self._updates}",
            f"reward {values['rollout/ep_rew_mean']:+.3f}",
            f"sentiment {values['rollout/sentiment']:+.3f}",
            *([f"VADER {values['rollout/vader']:+.2f}"] if "rollout/vader" in values else []),
            f"KL {values['train/kl']:.2f}",
            f"perplexity {values['train/perplexity']:.0f}",
            f"length {values['rollout/length']:4.1f}",
            f"distinct {values['rollout/distinct_texts']:.0%}",
            f"{values['time/fps']:,.0f} tokens/s",
            f"{int(left) // 60}:{int(left) % 60:02d} left",
        ]
        return "  ".join(parts)

    def _view(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for measure in ROWS:
            if values := self._series[measure.column]:
                now = f"{values[-1]:{measure.format}}"
                table.add_row(measure.title, now, Text(measure.unit, "dim"), sparkline(values))
        return Group(self._progress, table, *self.samples)


class ProbeCallback(BaseCallback):
    """Measures each batch by a judge that training does not use, and colours two of its texts.

    Reward hacking shows while it happens: the reward rises, the second judge does not follow.
    """

    def __init__(
        self, display: RunDisplay, judge: SentimentModel, second: SentimentModel | None
    ) -> None:
        """`judge` gives the reward; `second` is logged as `rollout/vader`."""
        super().__init__()
        self._display, self._judge, self._second = display, judge, second

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        texts = [info["text"] for info in self.locals["episodes"].infos]
        self.logger.record("rollout/distinct_texts", len(set(texts)) / len(texts))
        if self._second is not None:
            self.logger.record("rollout/vader", float(np.mean(np.asarray(self._second(texts)))))
        if self._display.console.is_terminal:
            vocabulary = self.training_env.get_attr("vocabulary")[0]
            rows = self.locals["episodes"].texts[:2].tolist()
            self._display.samples = [
                coloured([vocabulary.decode([i]) for i in row], self._judge) for row in rows
            ]


def contributions(
    tokens: Sequence[str], judge: SentimentModel, prompt: str = ""
) -> npt.NDArray[np.float64]:
    """By how much each token moves the judge's score.

    It is the score of the text up to the token, less that of the text before it. An empty text scores
    0, so that without a prompt the contributions add up to the text's score.
    """
    texts = [prompt + "".join(tokens[:n]) for n in range(not prompt, len(tokens) + 1)]
    scores = np.asarray(judge(texts), float) if texts else np.zeros(0)
    return np.diff(scores) if prompt else np.diff(scores, prepend=0.0)


def coloured(tokens: Sequence[str], judge: SentimentModel) -> Text:
    """A text in which each token is coloured by its contribution: green raises the score, red lowers it."""
    tokens = [token for token in tokens if token]
    text = Text("▏", overflow="fold")
    for token, change in zip(tokens, contributions(tokens, judge), strict=True):
        strength = int(min(1.0, abs(change)) * 155) + 100
        red_green = (80, strength) if change > 0 else (strength, 80)
        style = f"rgb({red_green[0]},{red_green[1]},80)" if abs(change) > 0.05 else ""
        text.append(token.replace("\n", " "), style)
    return text


def show_outcome(
    console: Console,
    summary: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
) -> None:
    """Prints measures and texts before and after, where everything is, and commands to go on with.

    Args:
        console: where to print.
        summary: the content of summary.json.
        before, after: samples of `agents.evaluation.evaluate`, with `text` and `reward`.
    """
    columns = ["before", "after", *(["optimum"] if "optimum" in summary else [])]
    table = Table(title=f"Means over {summary['after']['episodes']} fresh texts")
    table.add_column()
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("unit")
    for row in measure_rows(summary):
        table.add_row(row.title, *(getattr(row, column) for column in columns), row.unit)
    samples = Table("reward", "before", "reward", "after", title="The first texts of each")
    for pair in list(zip(before, after, strict=True))[:8]:
        cells = [(f"{sample['reward']:+.2f}", Text(sample["text"].strip())) for sample in pair]
        samples.add_row(*cells[0], *cells[1])
    console.print(table, samples)
    folder, commands = Path(summary["arguments"]["out"]), next_commands(summary)
    width = max(len(command) for command, _ in commands)
    since = f" since update {summary['resumed_at']}" if summary.get("resumed_at") else ""
    lines = [
        f"{summary['updates']} updates, {summary['seconds']:.0f} s of training{since}"
        f" at {summary['tokens_per_second']:,.0f} tokens/s.",
        f"\nEverything is in {folder}:",
        *(f"  {name:20s} {what}" for name, what in FILES if (folder / name).exists()),
        "\nWhat to do next:",
        *(f"  {command:{width}s}  # {what}" for command, what in commands),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def next_commands(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Commands to paste after a run, and what each does."""
    arguments = summary["arguments"]
    run, updates = shlex.quote(arguments["out"]), arguments["updates"]
    more = "" if summary["updates"] < updates else f" --updates {2 * updates}"
    can_go_on = bool(RunFolder(arguments["out"]).checkpoints())
    return [
        (f'python -m agents generate {run} "the movie" -n 5', "write texts"),
        (f"python -m agents evaluate {run}", "1,000 texts: intervals, best and worst"),
        (f"python -m agents play {run}", "write a text by hand"),
        *(
            [(f"python -m agents train --out {run} --resume{more}", "go on training")]
            if can_go_on
            else []
        ),
        *(
            [(f"tensorboard --logdir {run}", "curves, histograms and texts")]
            if arguments["tensorboard"]
            else []
        ),
        *(
            [(f"trackio show --project {PROJECT}", "curves and texts in a browser")]
            if arguments["track"] == "trackio"
            else []
        ),
    ]
