"""Draws the README's picture from finished runs of `train_reinforce.py`, and prints its row of results.

python examples/train_reinforce.py --out runs/seed0
python examples/images/plot_runs.py runs/seed0
python examples/images/plot_runs.py runs/seed*       # mean and standard error over the seeds
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from agents import cli

PICTURE = Path(__file__).parent / "learning_curves.png"
BLUE, ORANGE = "#2563eb", "#d97706"

# The columns of the README's table: title, measure, number format.
COLUMNS = [
    ("sentiment", "sentiment", "+.3f"),
    ("VADER", "vader", "+.3f"),
    ("perplexity", "perplexity", ".1f"),
    ("distinct texts", "distinct_texts", ".1%"),
    ("KL", "kl", ".2f"),
    ("gap", "gap", ".2f"),
    ("length", "length", ".1f"),
]


@cli.errors_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train_reinforce.py wrote")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the PNG to write")
    args = parser.parse_args(argv)
    summaries = [json.loads((run / "summary.json").read_text("utf-8")) for run in args.runs]
    plot([read_progress(run / "progress.csv") for run in args.runs], summaries, args.out)
    print("\n".join(table(summaries)))
    return 0


def read_progress(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """A run's log by column, a value an update."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def mean_and_error(values: npt.ArrayLike) -> tuple[Any, Any]:
    """Mean and standard error over the first axis, the seeds; the error of one seed is 0."""
    values = np.asarray(values, np.float64)
    n = len(values)
    error = values.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(values.shape[1:])
    return values.mean(0), error


def table(summaries: list[dict[str, Any]]) -> list[str]:
    """The row of results in Markdown: before → mean ± standard error over the runs."""
    cells = []
    for _, measure, form in COLUMNS:
        before, _ = mean_and_error([summary["before"][measure] for summary in summaries])
        after, error = mean_and_error([summary["after"][measure] for summary in summaries])
        spread = f" ± {error:{form.lstrip('+')}}" if len(summaries) > 1 else ""
        cells.append(f"{before:{form}} → {after:{form}}{spread}")
    seconds, _ = mean_and_error([summary["seconds"] for summary in summaries])
    return [
        "| " + " | ".join(title for title, _, _ in COLUMNS) + " | training |",
        "|" + "---:|" * (len(COLUMNS) + 1),
        "| " + " | ".join([*cells, f"{seconds:.0f} s"]) + " |",
    ]


def plot(
    logs: list[dict[str, npt.NDArray[np.float64]]], summaries: list[dict[str, Any]], path: Path
) -> None:
    """Sentiment, KL and length over the updates; points are evaluations on fresh texts."""
    updates = min(len(log["train/n_updates"]) for log in logs)
    low, high = summaries[0]["arguments"]["target_length"]
    panels: list[tuple[str, str, str]] = [
        ("Sentiment of the texts", "rollout/sentiment", "sentiment"),
        ("KL to the start model (nats per text)", "train/kl", "kl"),
        ("Length (tokens)", "rollout/length", "length"),
    ]
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.1), layout="constrained")
        for axis, (title, column, measure) in zip(axes, panels, strict=True):
            curve(axis, np.stack([log[column][:updates] for log in logs]))
            points(axis, updates, summaries, measure, BLUE, "o", "judge in the reward, fresh texts")
            axis.set(title=title, xlabel="update", xlim=(-2, updates + 2))
            axis.grid(alpha=0.25)
        points(axes[0], updates, summaries, "vader", ORANGE, "s", "VADER, never trained on")
        axes[0].axhline(0, color="0.6", lw=0.8, zorder=0)
        axes[0].set_ylim(-0.3, 1.05)
        axes[0].legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1, 0.46))
        axes[2].axhspan(low, high, color="#16a34a", alpha=0.10, lw=0)
        axes[2].set_ylim(0, high)
        axes[2].text(0.97, 0.95, "no length penalty", transform=axes[2].transAxes,
                     ha="right", va="top", fontsize=8, color="#15803d")  # fmt: skip
        figure.savefig(path, dpi=150)
        plt.close(figure)


def curve(axis: Axes, values: npt.NDArray[np.float64]) -> None:
    """The training batches' mean over the runs (runs, updates), and its standard error."""
    mean, error = mean_and_error(values)
    x = np.arange(1, len(mean) + 1)
    axis.plot(x, mean, color=BLUE, lw=1.4, label="judge in the reward, training batch")
    if len(values) > 1:
        axis.fill_between(x, mean - error, mean + error, color=BLUE, alpha=0.2, lw=0)


def points(
    axis: Axes,
    updates: int,
    summaries: list[dict[str, Any]],
    measure: str,
    color: str,
    marker: str,
    label: str,
) -> None:
    """The evaluations before and after training, mean over the runs."""
    ends = [
        np.mean([summary[when][measure] for summary in summaries]) for when in ("before", "after")
    ]
    axis.plot(
        (0, updates), ends, marker, color=color, ms=6, mec="white", label=label, clip_on=False
    )


if __name__ == "__main__":
    raise SystemExit(main())
