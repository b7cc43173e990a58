"""Draws the README's picture from a finished run, and prints the tables of several as Markdown.

python examples/images/plot_runs.py runs/seed0       # picture and texts of one run
python examples/images/plot_runs.py runs/seed*       # the other seeds behind it, and the means over all
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from agents import cli
from agents.figures import check_format, learning_curve, write_sheet
from agents.metrics import standard_error
from agents.report import MEASURES, Record

# The columns of the tables: heading and measure.
COLUMNS = {
    "sentiment": "sentiment",
    "VADER": "vader",
    "KL, nats per text": "kl",
    "gap, nats": "gap",
    "distinct texts": "distinct_texts",
    "perplexity": "perplexity",
    "length, tokens": "length",
}


@dataclass
class Args:
    """Draws a picture and prints tables."""

    runs: tyro.conf.Positional[list[Path]]
    """folders that train_reinforce.py wrote; the first one's curves and texts, with the others' curves behind"""
    out: Path = Path("learning_curves.png")
    """the picture to write: .png, .pdf, .svg..."""
    texts: int = 6
    """texts to print, before and after training"""


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    args = cli.parse(Args, argv, __doc__)
    if not args.runs:
        raise ValueError("RUNS: name the folder of at least one finished run")
    check_format("out", args.out)
    cli.prepare_folder("out", args.out)
    records = [Record.read(run) for run in args.runs]
    names = ("sentiment", "kl", "length")
    panels = [learning_curve(records[0], name, records[1:]) for name in names]
    write_sheet(panels, args.out)
    tables = means(records), by_seed(records), texts(records[0], args.texts)
    print("\n\n".join("\n".join(table) for table in tables))
    return 0


def means(records: Sequence[Record]) -> Iterator[str]:
    """Before, after and at the optimum: the mean over the runs, and its standard error."""
    yield from _heading("", *COLUMNS)
    for when in ("before", "after", "optimum"):
        cells = []
        for measure in COLUMNS.values():
            form = MEASURES[measure].format
            values = np.array([r.summary.get(when, {}).get(measure, np.nan) for r in records])
            cell = "" if np.isnan(values).any() else _number(values.mean(), form)
            if cell and when == "after" and len(values) > 1:
                cell += f" ± {_number(standard_error(values), form.removeprefix('+'))}"
            cells.append(cell)
        yield _row(when, *cells)


def by_seed(records: Sequence[Record]) -> Iterator[str]:
    """Every run after training."""
    yield from _heading("seed", *COLUMNS, "training, s")
    for record in sorted(records, key=lambda r: r.summary["arguments"]["seed"]):
        summary = record.summary
        after = summary["after"]
        cells = [
            _number(after[name], MEASURES[name].format) if name in after else ""
            for name in COLUMNS.values()
        ]
        yield _row(summary["arguments"]["seed"], *cells, f"{summary['seconds']:.0f}")


def texts(record: Record, count: int) -> Iterator[str]:
    """The first texts, nothing picked."""
    yield _row("reward before", "text before", "reward after", "text after")
    yield "|---:|---|---:|---|"
    before, after = record.samples["before"][:count], record.samples["after"][:count]
    for pair in zip(before, after, strict=True):
        yield _row(*(x for s in pair for x in (_number(s["reward"], "+.2f"), s["text"].strip())))


def _heading(first: str, *others: str) -> Iterator[str]:
    yield _row(first, *others)
    yield "|---|" + "---:|" * len(others)


def _number(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−").replace("%", " %")


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
