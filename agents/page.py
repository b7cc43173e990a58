"""`report.html`: one page that tells a run, from what it recorded. Template: `data/report.html.j2`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from agents import figures
from agents.arguments import training_command
from agents.atomic import atomic_write
from agents.display import contributions
from agents.report import Record, Sample, interval, measure_rows, measures_of
from text_sentiment_env import SentimentModel

PAIRS, EXTREMES = 12, 10  # texts shown side by side; best and worst texts
# Headings over the rows of three panels of `figures.learning_curves`.
HEADINGS = (
    ("Reward", "What is optimized, and what it is made of."),
    ("Texts", "What a hacked reward would spoil."),
    ("Distance from the start model", "How far the policy has moved, and what it has given up."),
)
VISIBLE = str.maketrans(
    {i: 0x2400 + i for i in range(32)}
)  # control characters: ␊ for a line's end


def write(folder: Path, judge: SentimentModel) -> None:
    """Draws a finished run: learning_curves.png, evaluation.png and report.html.

    Args:
        folder: the run's, with summary.json, progress.csv and samples.jsonl.
        judge: that of the reward, which colours the tokens.

    Raises:
        ValueError: if one of the files is missing.
    """
    record = Record.read(folder)
    figures.write_sheet(figures.learning_curves(record), folder / "learning_curves.png")
    figures.write_sheet(figures.evaluation(record), folder / "evaluation.png")
    page = render(record, folder.resolve().name, judge)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(page, "utf-8")


def render(record: Record, name: str, judge: SentimentModel) -> str:
    """The page of the run `name`; whatever the texts hold is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(str(resources.files("agents") / "data")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = figures.learning_curves(record)
    pairs = zip(record.samples["before"], record.samples["after"], strict=True)
    best, worst = _extremes(record.samples["after"])
    return environment.get_template("report.html.j2").render(
        name=name,
        summary=record.summary,
        arguments=record.summary["arguments"],
        command=training_command(record.summary["arguments"]),
        second=record.second_judge,
        colours=figures.COLOURS,
        rows=_rows(record),
        groups=[
            (*heading, [(panel.title, figures.svg(panel)) for panel in curves[3 * i : 3 * i + 3]])
            for i, heading in enumerate(HEADINGS)
        ],
        evaluation=[(panel.title, figures.svg(panel)) for panel in figures.evaluation(record)],
        correlations=_correlations(record),
        dots=figures.DOTS,
        pairs=[[_coloured(s, judge) for s in pair] for pair in list(pairs)[:PAIRS]],
        best=[_coloured(sample, judge) for sample in best],
        worst=[_coloured(sample, judge) for sample in worst],
    )


def _rows(record: Record) -> list[dict[str, str]]:
    """Measures before and after; of measures of a text also the half-width of a 95 % interval."""
    rows, kinds = [], measures_of(record.summary["before"])
    for measure in measure_rows(record.summary):
        row, name = measure._asdict(), measure.name
        for when, samples in record.samples.items():
            values = record.values(when, name).tolist() if samples and name in samples[0] else []
            row[f"{when}_interval"] = interval(values, kinds[name].format)
        rows.append(row)
    return rows


def _correlations(record: Record) -> dict[str, float]:
    """Pearson's, of the reward with the second judge's score; not of values that are all equal."""
    found: dict[str, float] = {}
    for when in record.samples if record.second_judge else ():
        x, y = (record.values(when, name) for name in ("reward", str(record.second_judge)))
        if np.ptp(x) and np.ptp(y):
            found[when] = float(np.corrcoef(x, y)[0, 1])
    return found


def _extremes(samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
    """The distinct texts of the highest and of the lowest reward, with how often each was written."""
    counts = Counter(sample["text"] for sample in samples)
    distinct = {sample["text"]: sample for sample in samples}.values()
    ranked = sorted(distinct, key=lambda sample: -sample["reward"])
    counted = [{**sample, "count": counts[sample["text"]]} for sample in ranked]
    return [counted[:EXTREMES], counted[::-1][:EXTREMES]]


def _coloured(sample: Sample, judge: SentimentModel) -> dict[str, Any]:
    """A sample with the contribution of each of its tokens."""
    changes = contributions(sample["tokens"], judge, sample["prompt"])
    tokens = [
        # The space before a word stays without colour, and the text's first is not shown.
        (" " if token.startswith(" ") and (i or sample["prompt"]) else "", token.removeprefix(" "))
        for i, token in enumerate(token.translate(VISIBLE) for token in sample["tokens"])
    ]
    return {
        **sample,
        "prompt": sample["prompt"].translate(VISIBLE).removeprefix(" "),
        "tokens": [(*token, change) for token, change in zip(tokens, changes, strict=True)],
    }
