"""The command `compare`: a table, means over runs that differ only in their seed, and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents import cli, figures, report
from agents.arguments import RESUMABLE, Args
from agents.atomic import atomic_write
from agents.metrics import standard_error

# The measures of the table, under headings with which they fit into 80 columns.
COMPARED = ("reward", "sentiment", "vader", "kl", "gap", "length", "perplexity", "distinct_texts")
# Arguments in which the runs of a mean may differ: they change no result, or only by chance. A preset
# is nothing but the other arguments.
SAME_RESULT = RESUMABLE - {"updates"} | {"preset", "seed", "cuda_graphs", "compile"}
MOST_NAMED = 3  # arguments in a group's name


class Group(NamedTuple):
    """Runs of the same arguments, but for SAME_RESULT."""

    name: str
    arguments: dict[str, Any]  # those that differ from group to group
    members: list[int]  # places in the list of runs

    def statistics(self, measures: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Means of what all members have measured, and their standard errors if there are several."""
        rows = [measures[i] for i in self.members]
        common = [name for name in rows[0] if all(name in row for row in rows)]
        known = {name: [row[name] for row in rows] for name in common}
        means = {name: float(np.mean(values)) for name, values in known.items()}
        several = known if len(rows) > 1 else {}
        return [means, {name: standard_error(values) for name, values in several.items()}]


@dataclass
class Compare:
    """Compare finished runs: a table with the means over seeds, and a figure of their learning curves."""

    runs: tyro.conf.Positional[list[Path]]
    """folders of runs"""
    figure: Path = Path("compare.png")
    """where to draw the learning curves: .png, .pdf, .svg..."""
    json: Path | None = None
    """also write all measures, means and errors to this file"""

    def __call__(self) -> None:
        """Prints the table, draws the figure and writes the file."""
        if not self.runs:
            raise ValueError("RUNS: name the folder of at least one finished run")
        runs = list({run.resolve(): run for run in self.runs}.values())
        summaries = [report.read_summary(run) for run in runs]
        figures.check_format("figure", self.figure)
        cli.prepare_folder("figure", self.figure)
        if self.json is not None:
            cli.prepare_folder("json", self.json)
        names = _short_names(runs)
        groups = grouped(summaries, names)
        measures = [_measures(summary) for summary in summaries]
        Console().print(_table(names, groups, measures))
        if len(groups) == len(runs) > 1:
            other = ", ".join(map(cli.flag, groups[0].arguments))
            print(f"no mean, because the runs differ in {other}")
        curves = [(g.name, [runs[i] / "progress.csv" for i in g.members]) for g in groups]
        with cli.writing("figure", self.figure):
            figures.write_sheet(figures.compare_runs(curves), self.figure)
        print(f"learning curves: {self.figure}")
        if self.json is not None:
            content = _record(runs, summaries, groups, measures)
            with cli.writing("json", self.json), atomic_write(self.json) as temporary:
                temporary.write_text(json.dumps(content, indent=2), "utf-8")


def grouped(summaries: Sequence[dict[str, Any]], names: Sequence[str]) -> list[Group]:
    """The groups of runs, in the order of their first members.

    Args:
        summaries: the content of each run's summary.json.
        names: of the runs; a group of one run has its run's.
    """
    learned = [_learned(summary) for summary in summaries]
    differing = _differing(learned)
    found: dict[str, list[int]] = {}
    for i, values in enumerate(differing):
        found.setdefault(json.dumps(values), []).append(i)
    groups = []
    for members in found.values():
        arguments = differing[members[0]]
        parts = [f"{name} {_plain(value)}" for name, value in arguments.items()]
        name = ", ".join([*parts, f"{len(members)} runs"])
        if len(parts) > MOST_NAMED:
            name = f"{len(members)} runs like {names[members[0]]}"
        groups.append(Group(name if len(members) > 1 else names[members[0]], arguments, members))
    return groups


def _arguments(summary: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a run; a flag that it did not know yet has its default."""
    return json.loads(json.dumps(Args().flat())) | summary["arguments"]  # JSON: tuples are lists


def _learned(summary: dict[str, Any]) -> dict[str, Any]:
    """The arguments that shape a result."""
    # A run that was stopped has learned from fewer updates than it was asked for.
    values = _arguments(summary) | {"updates": summary["updates"]}
    return {name: value for name, value in values.items() if name not in SAME_RESULT}


def _differing(values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run the arguments that are not the same in all of them."""
    names = dict.fromkeys(name for row in values for name in row)
    other = [name for name in names if any(row.get(name) != values[0].get(name) for row in values)]
    return [{name: row.get(name) for name in other} for row in values]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _measures(summary: dict[str, Any]) -> dict[str, float]:
    return {name: x for name, x in summary["after"].items() if isinstance(x, int | float)}


def _table(
    names: Sequence[str], groups: Sequence[Group], measures: Sequence[dict[str, float]]
) -> Table:
    table = Table(
        title="After training, fresh texts", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("run", overflow="fold")  # a name that is cut could be any run's
    for name in COMPARED:
        table.add_column(report.MEASURES[name].short, justify="right", no_wrap=True)

    def add_row(name: str, values: dict[str, float]) -> None:
        # Text, because a string's [brackets] and :colons: would be markup.
        table.add_row(Text(name), *(_number(measure, values.get(measure)) for measure in COMPARED))

    for name, values in zip(names, measures, strict=True):
        add_row(name, values)
    for group in groups:
        if len(group.members) > 1:
            table.add_section()
            means, errors = group.statistics(measures)
            add_row(f"mean, {group.name}" if len(groups) > 1 else "mean", means)
            add_row("± error", errors)
    return table


def _number(measure: str, value: float | None) -> str:
    form = report.MEASURES[measure].format.lstrip("+")
    return "" if value is None else f"{value:{form}}"


def _short_names(runs: Sequence[Path]) -> list[str]:
    """The runs' own names if they are all different, else their paths."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _record(
    runs: Sequence[Path],
    summaries: Sequence[dict[str, Any]],
    groups: Sequence[Group],
    measures: Sequence[dict[str, float]],
) -> dict[str, Any]:
    """What --json writes; `pandas.json_normalize` makes a table of `runs`, and one of `groups`."""
    of = {i: group.name for group in groups for i in group.members}
    arguments = _differing(list(map(_arguments, summaries)))
    return {
        "runs": [
            {"run": str(run), "group": of[i], "arguments": arguments[i], "measures": measures[i]}
            for i, run in enumerate(runs)
        ],
        "groups": [
            {"group": group.name, "runs": len(group.members), "arguments": group.arguments}
            | dict(zip(("mean", "error"), group.statistics(measures), strict=True))
            for group in groups
        ],
    }
