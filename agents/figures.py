"""Pictures of training runs: learning curves, reward terms, and the texts before and after.

A panel draws into one axis. The same panels make the sheets `learning_curves.png` and
`evaluation.png`, and one SVG each for `report.html`, which sets their colours by its theme.
"""

from __future__ import annotations

import functools
import html
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agents import cli
from agents.atomic import atomic_write
from agents.callbacks import read_rows
from agents.frontier import Frontier
from agents.report import CURVES, MEASURES, Record, by_update

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, by their name in the page's CSS.
COLOURS = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "rule": "#d0d7de",
    "before": "#818b96",
    "after": "#0072b2",
    "second": "#d55e00",
    "third": "#a6537f",
    "paper": "#ffffff",
}
DASHES = ("-", "--", ":", "-.")
DOTS = 400  # texts of a scatter plot, before and after each: more only hide one another

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["rule"],
    "axes.grid": True,
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.4,
    "legend.labelcolor": COLOURS["ink"],
    "text.parse_math": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "xtick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["rule"],
    "ytick.labelcolor": COLOURS["muted"],
}


@dataclass(frozen=True)
class Panel:
    """One picture: its title, what a reader who cannot see it should know, and how to draw it."""

    title: str
    alt: str
    draw: Callable[[Axes], None]


# ------------------------------------------------------------------------------------ over training


def learning_curves(record: Record) -> list[Panel]:
    """Measures by update: of the training batches, and of the evaluations before and after."""
    curves = [learning_curve(record, name) for name in CURVES]
    terms = Panel(
        "reward and its terms",
        f"Terms of the reward by update: {curves[0].alt}",
        lambda axis: _draw_terms(axis, record),
    )
    return [curves[0], terms, *curves[1:]]


def learning_curve(record: Record, name: str, others: Sequence[Record] = ()) -> Panel:
    """One measure by update; the `others`, such as runs with other seeds, are pale lines behind."""
    measure = MEASURES[name]

    def behind(axis: Axes, column: str, colour: str) -> None:
        for other in others:
            axis.plot(*other.column(column), color=COLOURS[colour], lw=0.8, alpha=0.25)

    def draw(axis: Axes) -> None:
        behind(axis, measure.column, "after")
        x, y = record.column(measure.column)
        axis.plot(x, y, color=COLOURS["after"], lw=1.2, label="training batch")
        if name == "sentiment" and record.second_judge:
            second = MEASURES[record.second_judge]
            axis.lines[-1].set_label("the reward's judge")
            behind(axis, second.column, "second")
            line = record.column(second.column)
            axis.plot(*line, color=COLOURS["second"], lw=1.2, label=second.title)
            _points(axis, record, record.second_judge)
        if name == "length" and record.summary["arguments"]["length_penalty"]:
            low, high = record.summary["arguments"]["target_length"]
            axis.axhspan(
                low, high, color=COLOURS["before"], alpha=0.15, lw=0, label="no length penalty"
            )
        if measure.unit == "share":
            axis.set_ylim(0, 1.05)
        _points(axis, record, name)
        _updates(axis)
        if name in ("sentiment", "length"):
            _legend(axis)

    before, after = (record.summary[when][name] for when in ("before", "after"))
    return Panel(
        measure.label,
        f"{measure.label} by update: {before:.3g} before training, {after:.3g} after.",
        draw,
    )


def _points(axis: Axes, record: Record, name: str) -> None:
    """The evaluations, hollow before and full after."""
    labelled = {line.get_label() for line in axis.lines}
    for x, when, face in ((0, "before", "paper"), (record.summary["updates"], "after", "ink")):
        if name in record.summary[when]:
            label = f"fresh texts {when}"
            axis.plot(
                [x],
                [record.summary[when][name]],
                "o",
                ms=5,
                mec=COLOURS["ink"],
                mfc=COLOURS[face],
                clip_on=False,
                zorder=3,
                label="_" if label in labelled else label,  # matplotlib shows no label "_"
            )


def _draw_terms(axis: Axes, record: Record) -> None:
    """The sentiment, what is subtracted from it, terms of the user's own, and their sum."""
    x, reward = record.column("rollout/ep_rew_mean")
    penalties = {
        MEASURES[name].title: record.column(MEASURES[name].column)[1]
        for name in ("length_penalty", "repetition_penalty")
    }
    penalties = {k: v for k, v in penalties.items() if len(v) == len(x) and np.any(v)}
    own = [term.partition("=")[0] for term in record.summary["arguments"].get("extra_terms", ())]
    terms = {name: record.column(f"rollout/{name}")[1] for name in own}
    # The judge's score after --target and --reward-type.
    sentiment = reward + sum(penalties.values()) - sum(terms.values())
    axis.axhline(0, color=COLOURS["rule"], lw=1)
    axis.plot(x, sentiment, color=COLOURS["after"], lw=1.2, label="sentiment")
    for (name, values), colour in zip(penalties.items(), ("second", "third"), strict=False):
        axis.plot(x, -values, color=COLOURS[colour], lw=1.2, label=f"− {name}")
    for (name, values), dashes in zip(terms.items(), itertools.cycle(DASHES[1:]), strict=False):
        axis.plot(x, values, color=COLOURS["ink"], ls=dashes, lw=1, label=name)
    axis.plot(x, reward, color=COLOURS["ink"], lw=1.5, label="reward, their sum")
    _updates(axis)
    _legend(axis)


def _updates(axis: Axes) -> None:
    """The x-axis of a learning curve: there is no half update."""
    axis.set_xlabel("update")
    axis.locator_params("x", integer=True)


def _legend(axis: Axes) -> None:
    """Below the axis, where it covers no data."""
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.25), ncols=2, fontsize=8, borderaxespad=0)


# --------------------------------------------------------------------------------- before and after


def evaluation(record: Record) -> list[Panel]:
    """The texts before and after: histograms of reward and length, and reward against the second judge."""
    panels = [_histogram(record, "reward", 24), _histogram(record, "length", None)]
    if record.second_judge:
        panels.append(_scatter(record, record.second_judge))
    if record.frontier is not None:
        panels.append(_frontier(record, record.frontier))
    return panels


def _frontier(record: Record, frontier: Frontier) -> Panel:
    """Reward by KL: the best that any policy can reach, best of n, and the policy before and after."""
    optima = frontier.optima().values()
    best = [frontier.best_of(n) for n in (2, 4, 8, 16, 32, 64) if n <= len(frontier)]

    def draw(axis: Axes) -> None:
        for points, style, colour, label in (
            (optima, "-", "third", "optimum"),
            (best, "^", "second", "best of 2, 4, … 64"),
        ):
            reached = [(point.kl, point.means["reward"]) for point in points]
            if reached:
                axis.plot(
                    *zip(*reached, strict=True), style, ms=4, color=COLOURS[colour], label=label
                )
        for when, marker in (("before", "x"), ("after", "o")):
            measures = record.summary[when]
            axis.plot(measures["kl"], measures["reward"], marker, color=COLOURS[when], label=when)
        axis.set_xlim(0, max(4.0, 1.2 * record.summary["after"]["kl"]))
        axis.set_xlabel(MEASURES["kl"].label)
        _legend(axis)

    after, optimum = record.summary["after"], record.summary["optimum"]
    return Panel(
        "reward by KL: the frontier",
        f"The policy has reward {after['reward']:.2f} at KL {after['kl']:.2f}; the optimum at the same"
        f" KL weight has {optimum['reward']:.2f} at {optimum['kl']:.2f}.",
        draw,
    )


def _histogram(record: Record, measure: str, bins: int | None) -> Panel:
    values = {when: record.values(when, measure) for when in ("before", "after")}
    every = np.concatenate(list(values.values()))
    # A bar for each number of tokens, or `bins` of the same width.
    edges = (
        np.arange(every.min(), every.max() + 2) - 0.5
        if bins is None
        else np.linspace(every.min(), max(every.max(), every.min() + 1e-6), bins + 1)
    )

    def draw(axis: Axes) -> None:
        for when, numbers in values.items():
            share = np.histogram(numbers, edges)[0] / len(numbers) * 100
            axis.stairs(share, edges, fill=True, color=COLOURS[when], alpha=0.3)
            axis.stairs(share, edges, color=COLOURS[when], lw=1.3, label=when)
        axis.set_xlabel("tokens" if measure == "length" else measure)
        axis.locator_params("x", nbins=6, integer=bins is None)
        _legend(axis)

    medians = (f"median {np.median(v):.3g} {when}" for when, v in values.items())
    return Panel(
        f"{measure}, % of texts", f"Histogram of the {measure}: {', '.join(medians)}.", draw
    )


def _scatter(record: Record, judge: str) -> Panel:
    pairs = {
        when: (record.values(when, "reward"), record.values(when, judge))
        for when in ("before", "after")
    }

    def draw(axis: Axes) -> None:
        for (when, (x, y)), marker in zip(pairs.items(), ("x", "o"), strict=True):
            axis.plot(
                x[:DOTS],
                y[:DOTS],
                marker,
                ms=3,
                color=COLOURS[when],
                alpha=0.6,
                mew=0.8 if marker == "x" else 0,
                label=when,
            )
        axis.set_xlabel("reward")
        _legend(axis)

    means = (
        f"{when} mean reward {x.mean():.2f} and mean score {y.mean():.2f}"
        for when, (x, y) in pairs.items()
    )
    title = f"{judge.upper()}, a second judge, by reward"
    return Panel(title, f"A point per text, {title}: {', '.join(means)}.", draw)


# ---------------------------------------------------------------------------------------- compared


def compare_runs(groups: Sequence[tuple[str, Sequence[Path]]]) -> list[Panel]:
    """Learning curves of several runs, and a panel with the legend.

    Args:
        groups: the name and the logs progress.csv of each group of runs, which has one colour. Several
            runs of a group are thin lines under their mean, in a band of its standard error.
    """
    logs = [(name, [read_rows(path) for path in paths]) for name, paths in groups]
    # Ten colours, then the same ones with other dashes.
    looks: list[dict[str, Any]] = [
        {"color": f"C{i % 10}", "ls": DASHES[i // 10 % len(DASHES)]} for i in range(len(logs))
    ]

    def panel(title: str, column: str) -> Panel:
        def draw(axis: Axes) -> None:
            for (_, runs), look in zip(logs, looks, strict=True):
                curves = [by_update(rows, column) for rows in runs]
                _draw_group(axis, [curve for curve in curves if len(curve[0])], look)
            _updates(axis)

        return Panel(title, f"{title} by update, a colour per group of runs.", draw)

    def legend(axis: Axes) -> None:
        from matplotlib.lines import Line2D

        axis.set_axis_off()
        # Handles and labels, because matplotlib leaves out the label of a line that begins with "_".
        columns = 1 if len(logs) < 15 else 2
        labels = [textwrap.fill(name, 50 // columns) for name, _ in logs]
        lines = sum(label.count("\n") + 1 for label in labels)
        several = any(len(runs) > 1 for _, runs in logs)
        axis.legend(
            [Line2D([], [], lw=2, **look) for look in looks],
            labels,
            loc="upper left",
            alignment="left",
            borderaxespad=0,
            handlelength=2.5,
            ncols=columns,
            fontsize=min(8, 100 * columns / lines),  # which lets them all into the panel
            title="bold: mean ± standard error; thin: its runs" if several else None,
            title_fontsize=8,
        ).set_in_layout(False)

    panels = [panel(MEASURES[name].label, MEASURES[name].column) for name in CURVES]
    return [*panels, Panel("", "The names of the lines.", legend)]


def _draw_group(
    axis: Axes, curves: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], look: Mapping[str, Any]
) -> None:
    """A line a run; of several runs also their mean, at the updates that all of them have."""
    several = len(curves) > 1
    for x, y in curves:
        axis.plot(x, y, lw=0.6 if several else 1.2, alpha=0.5 if several else 1, **look)
    if several:
        x = functools.reduce(np.intersect1d, [x for x, _ in curves])
        values = np.stack([np.interp(x, *curve) for curve in curves])
        mean, error = values.mean(0), values.std(0, ddof=1) / len(curves) ** 0.5
        axis.fill_between(x, mean - error, mean + error, color=look["color"], alpha=0.2, lw=0)
        axis.plot(x, mean, lw=2, **look)


# --------------------------------------------------------------------------------------- the files


def write_sheet(panels: Sequence[Panel], path: Path) -> None:
    """Draws panels into a file of its suffix's format, at most three in a row, four as two by two."""
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    with _style():
        figure = _figure(4.2 * columns, 3.0 * rows)
        for place, panel in enumerate(panels, 1):
            axis = figure.add_subplot(rows, columns, place)
            panel.draw(axis)
            axis.set_title(panel.title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=110)


def check_format(name: str, path: Path) -> None:
    """Refuses a picture in a format that matplotlib does not know.

    Raises:
        ValueError: naming the flag and its value.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"{cli.flag(name)} {path}: must end with .png, .pdf or .svg")


def svg(panel: Panel) -> str:
    """A panel as an SVG element for an HTML page.

    Colours are the page's CSS variables of their names in `COLOURS`, and text is in the page's font.
    """
    with _style():
        figure = _figure(4.2, 2.7)
        panel.draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    # What an element inside HTML does not need: the prolog, metadata, namespaces, and names of groups,
    # which are those of the next picture too.
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None
    opening = f'<svg {size[0]} role="img" aria-label="{html.escape(panel.alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(STYLE)
