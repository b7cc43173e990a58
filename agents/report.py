"""What a training run leaves to read: measures, sample texts, and where it ran."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import stable_baselines3 as sb3
import torch

import text_sentiment_env
from agents import distributed
from agents.atomic import atomic_write
from agents.callbacks import UPDATES, read_rows
from agents.frontier import START_TEXTS, Frontier, read_frontier
from agents.metrics import standard_error

Sample = Mapping[str, Any]  # a text and its measures, of `agents.evaluation.evaluate`
SAMPLES = "samples.jsonl"


class Measure(NamedTuple):
    """How tables and figures show a measure of an evaluation."""

    title: str
    unit: str
    format: str
    short: str = ""  # the heading of a narrow column
    column: str = ""  # of progress.csv, if training logs it

    @property
    def label(self) -> str:
        """Title and unit, for an axis."""
        return f"{self.title} ({self.unit})"


# In the order of tables.
MEASURES = {
    "reward": Measure("reward", "per text", "+.3f", "reward", "rollout/ep_rew_mean"),
    "sentiment": Measure(
        "sentiment, the judge's score", "−1 to 1", "+.3f", "sentim.", "rollout/sentiment"
    ),
    "vader": Measure("VADER, a second judge", "−1 to 1", "+.3f", "vader", "rollout/vader"),
    "length_penalty": Measure("length penalty", "per text", ".3f", column="rollout/length_penalty"),
    "repetition_penalty": Measure(
        "repetition penalty", "per text", ".3f", column="rollout/repetition_penalty"
    ),
    "length": Measure("length", "tokens", ".1f", "length", "rollout/length"),
    "end_rate": Measure("texts that end by themselves", "share", ".1%", column="rollout/end_rate"),
    "kl": Measure("KL to the start model", "nats per text", ".2f", "KL", "train/kl"),
    "gap": Measure("gap to the optimum: KL(π, π*)", "nats per text", ".2f", "gap"),
    "win_rate": Measure("wins over the start model's texts", "share", ".1%"),
    "entropy": Measure("entropy of the policy", "nats per token", ".2f", column="train/entropy"),
    "perplexity": Measure(
        "perplexity under the start model", "per token", ".1f", "perpl.", "train/perplexity"
    ),
    "distinct_texts": Measure(
        "distinct texts", "share", ".1%", "distinct", "rollout/distinct_texts"
    ),
    "distinct_1": Measure("distinct unigrams", "share", ".1%"),
    "distinct_2": Measure("distinct bigrams", "share", ".1%"),
}
# The learning curves of a run.
CURVES = (
    *("reward", "sentiment", "length", "end_rate"),
    *("distinct_texts", "kl", "entropy", "perplexity"),
)


# ---------------------------------------------------------------------------------------- a record


@dataclass(frozen=True)
class Record:
    """What a run has recorded."""

    summary: dict[str, Any]
    log: list[dict[str, str]]
    samples: dict[str, list[Sample]]
    frontier: Frontier | None  # of a run with KL

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Reads summary.json, progress.csv and samples.jsonl of a run's folder.

        Raises:
            ValueError: if one of them is missing, or the summary is damaged.
        """
        summary = read_summary(folder)
        try:
            lines = (folder / SAMPLES).read_text("utf-8").splitlines()
        except FileNotFoundError:
            raise ValueError(_missing(folder, SAMPLES)) from None
        samples: dict[str, list[Sample]] = {"before": [], "after": []}
        for sample in map(json.loads, lines):
            samples[sample.pop("when")].append(sample)
        log, frontier = read_rows(folder / "progress.csv"), read_frontier(folder / START_TEXTS)
        return cls(summary, log, samples, frontier if "optimum" in summary else None)

    @property
    def second_judge(self) -> str | None:
        """The measure that is a second judge's, if there is one."""
        return "vader" if "vader" in self.summary["after"] else None

    def column(self, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Updates and a column of the log."""
        return by_update(self.log, name)

    def values(self, when: str, measure: str) -> npt.NDArray[np.float64]:
        """A measure of every text, `"before"` or `"after"`."""
        return np.array([sample[measure] for sample in self.samples[when]], float)


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads summary.json of a run's folder.

    Raises:
        ValueError: if it is missing, or holds no summary.
    """
    file = folder / "summary.json"
    try:
        summary = json.loads(file.read_text("utf-8"))
        parts = [summary[name] for name in ("arguments", "before", "after")]
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(_missing(folder, file.name)) from None
    except (ValueError, TypeError, KeyError) as error:
        reason = error if isinstance(error, ValueError) else "it holds no summary of a run"
        raise ValueError(
            f"{file} is damaged ({reason}): write it again by `python -m agents train --out {folder}"
            " --resume`"
        ) from None
    return summary


def _missing(folder: Path, name: str) -> str:
    return (
        f"{folder} holds no {name}: name the folder of a run that has ended, or write the file by"
        " --resume"
    )


def by_update(
    log: Sequence[Mapping[str, str]], column: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Updates and values of a log's column, without the rows that lack it."""
    pairs = [(float(row[UPDATES]), float(row[column])) for row in log if row.get(column)]
    updates, values = np.array(pairs, float).reshape(-1, 2).T
    return updates, values


def versions() -> dict[str, str]:
    """Versions of everything that shapes a run."""
    modules = (text_sentiment_env, torch, gym, sb3)
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


def hardware(device: torch.device) -> dict[str, Any]:
    """Where a run ran."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def write_samples(
    folder: Path, title: str, before: Sequence[Sample], after: Sequence[Sample]
) -> None:
    """Writes samples.jsonl, every text with its measures, and samples.md, some of them side by side."""
    records = [
        json.dumps({"when": when, **sample})
        for when, samples in (("before", before), ("after", after))
        for sample in samples
    ]
    with atomic_write(folder / SAMPLES) as temporary:
        temporary.write_text("\n".join(records) + "\n", "utf-8")
    lines = [
        "# Samples",
        "",
        title,
        "",
        "| reward before | text before | reward after | text after |",
        "|---:|---|---:|---|",
    ]
    for old, new in list(zip(before, after, strict=True))[:40]:
        cells = [f"{sample['reward']:+.2f} | {_cell(sample['text'])}" for sample in (old, new)]
        lines.append("| " + " | ".join(cells) + " |")
    with atomic_write(folder / "samples.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ↵ ") or "*(empty)*"


def interval(values: Sequence[float], form: str) -> str:
    """Half of a 95 % interval of the mean, with the format of the mean; empty for one value."""
    if len(values) < 2:
        return ""
    return f"± {1.96 * standard_error(values):{form.lstrip('+')}}"


class MeasureRow(NamedTuple):
    """A measure of a run, formatted."""

    name: str
    title: str
    before: str
    after: str
    optimum: str  # of the best policy at the run's KL weight; empty where it has no such measure
    unit: str


def measures_of(result: Mapping[str, Any]) -> dict[str, Measure]:
    """The `MEASURES` of an evaluation, and what its task adds to them, such as a term of the reward."""
    own = {
        name: Measure(name, "per text", "+.3f")
        for name, value in result.items()
        if isinstance(value, float)
        and name not in MEASURES
        and not name.endswith("_standard_error")
    }
    return {name: kind for name, kind in (MEASURES | own).items() if name in result}


def measure_rows(summary: Mapping[str, Any]) -> list[MeasureRow]:
    """Every measure that the run has, in the order of tables."""

    def value(when: str, name: str, form: str) -> str:
        found = summary.get(when, {}).get(name)
        return "" if found is None else f"{found:{form}}"

    rows = []
    for name, measure in measures_of(summary["before"]).items():
        weight = summary["arguments"].get(name)  # of a penalty; nothing to say at 0
        if weight != 0:
            before, after, best = (
                value(when, name, measure.format) for when in ("before", "after", "optimum")
            )
            rows.append(MeasureRow(name, measure.title, before, after, best, measure.unit))
    return rows
