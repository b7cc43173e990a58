"""Sweep β in the default run and draw the policies beside the exact optimum: what a KL budget buys.

    python examples/frontier.py                              # five runs, some minutes on two CPU cores
    python examples/frontier.py --betas 0.1 0.2 --updates 300
    python examples/frontier.py --smoke                      # some seconds, to see that it works

The optimum and best-of-n are measured on texts of the start model alone (`agents/frontier.py`). Writes
frontier.png, frontier.json and start.npz, the start texts' measures, to --out.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from agents import REINFORCE, cli, training
from agents.arguments import PRESETS, EnvironmentArgs
from agents.evaluation import evaluate
from agents.figures import COLOURS, Panel, write_sheet
from agents.frontier import FEWEST_SAMPLES, Frontier, Point, start_frontier
from agents.report import MEASURES
from text_sentiment_env import load_sentiment_model

DEFAULT = PRESETS["reviews"]
BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128)
LABELLED = (4, 16, 64)  # of BEST_OF, in the picture
PANELS = (
    ("sentiment", "sentiment, by the judge that pays (−1 to 1)"),
    ("vader", "sentiment, by VADER, which pays nothing (−1 to 1)"),
    ("length", "length (tokens)"),
)
# Heading, measure, format.
COLUMNS = (
    ("β", "beta", "g"),
    ("sentiment", "sentiment", "+.3f"),
    ("VADER", "vader", "+.3f"),
    ("KL", "kl", ".2f"),
    ("gap", "gap", ".2f"),
    ("±", "gap_standard_error", ".2f"),
    ("length", "length", ".1f"),
    ("perplexity", "perplexity", ".1f"),
    ("distinct", "distinct_texts", ".1%"),
)


@dataclass
class Args:
    """Sweeps β and draws reward against KL."""

    out: str = "runs/frontier"
    """folder to write to"""
    betas: tuple[float, ...] = (0.03, 0.07, 0.16, 0.3, 0.6)
    """KL weights to train with, one run each"""
    updates: int = DEFAULT.run.updates
    """gradient steps of a run"""
    num_envs: int = DEFAULT.environment.num_envs
    """texts per update"""
    learning_rate: float = DEFAULT.reinforce.learning_rate
    """AdamW's, falling to 0 along a cosine"""
    seed: int = 0
    """of everything random"""
    start_episodes: int = 8192
    """texts of the start model that the optimum is measured on"""
    eval_episodes: int = 1024
    """texts of each trained policy"""
    sentiment_model: Literal["bundled", "vader"] = "bundled"
    """the judge that pays: bundled or vader"""
    smoke: bool = False
    """other defaults: a few texts and updates, with the cheapest judge"""


SMOKE = Args(
    betas=(0.1, 0.3),
    updates=2,
    num_envs=16,
    start_episodes=512,
    eval_episodes=64,
    sentiment_model="vader",
    smoke=True,
)


def task(args: Args) -> EnvironmentArgs:
    """The default run's task."""
    return replace(DEFAULT.environment, sentiment_model=args.sentiment_model)


def make_model(args: Args, beta: float) -> REINFORCE:
    """The default run's agent, with another β."""
    reinforce = replace(DEFAULT.reinforce, learning_rate=args.learning_rate, kl_coef=beta)
    run = replace(DEFAULT.run, seed=args.seed)
    env = training.make_env(task(args), args.sentiment_model, args.num_envs)
    return training.make_model(replace(DEFAULT, run=run, reinforce=reinforce), env, "cpu")


def row(setting: str, value: float, point: Point) -> dict[str, float]:
    """A point of a curve, flat, for JSON."""
    means = point.means | {"kl": point.kl, "effective_samples": point.effective_samples}
    return {setting: value, **means}


def curves(frontier: Frontier) -> dict[str, list[dict[str, float]]]:
    """The start model, the exact optimum over β and best-of-n."""
    sizes = [n for n in BEST_OF if n <= len(frontier)]
    best = [row("n", n, frontier.best_of(n)) for n in sizes]
    return {
        "start": best[:1],
        "optimum": [row("beta", beta, point) for beta, point in frontier.optima().items()],
        "best_of_n": [p for p in best if p["effective_samples"] >= FEWEST_SAMPLES],
    }


def train(args: Args, beta: float, frontier: Frontier) -> dict[str, Any]:
    """Trains with one β and measures the policy's texts."""
    model = make_model(args, beta)
    model.learn(total_updates=args.updates)
    result = evaluate(
        model.policy,
        model.reference,
        training.make_env(task(args), args.sentiment_model, args.num_envs),
        args.eval_episodes,
        seed=1000,
        judges={"vader": load_sentiment_model("vader")},
        frontier=frontier,
        kl_coef=beta,
    )
    result["samples"] = [sample["text"] for sample in result["samples"][:20]]
    return {"beta": beta, **result}


def panel(result: dict[str, Any], measure: str, title: str) -> Panel:
    """A measure against KL: start model, optimum, best-of-n and the trained policies."""

    def draw(axis: Any) -> None:
        for name, style, colour, label in (
            ("optimum", "-", "third", "exact optimum π* ∝ π₀ exp(r/β)"),
            ("best_of_n", "^--", "second", "best of n (KL bound)"),
            ("trained", "o-", "after", "REINFORCE"),
            ("start", "s", "ink", "start model"),
        ):
            x, y = zip(*((p["kl"], p[measure]) for p in result[name]), strict=True)
            axis.plot(x, y, style, color=COLOURS[colour], ms=5, lw=1.2, label=label)
        notes = []
        if measure == PANELS[0][0]:
            best = [p for p in result["best_of_n"] if p["n"] in LABELLED]
            notes += [(p, f"n={p['n']}", "second", (-5, 5)) for p in best]
        last = len(result["trained"]) - 1
        for i, p in enumerate(result["trained"]):  # at two heights: neighbours are close
            offset = (-5 if i == last else 5, -20 if i % 2 else -11)
            notes.append((p, f"β={p['beta']}", "after", offset))
        for p, text, colour, offset in notes:
            axis.annotate(
                text,
                (p["kl"], p[measure]),
                offset,
                textcoords="offset points",
                ha="right" if offset[0] < 0 else "left",
                fontsize=8,
                color=COLOURS[colour],
            )
        axis.margins(x=0.12, y=0.12)  # room for the notes
        axis.set_xlabel(MEASURES["kl"].label)
        if measure == PANELS[0][0]:
            axis.legend(loc="lower right", fontsize=8)

    return Panel(title, f"{title} against KL", draw)


def show(console: Console, result: dict[str, Any]) -> None:
    """The trained policies, for the terminal."""
    table = Table(
        box=SIMPLE,
        padding=(0, 1, 0, 0),  # fits a terminal of 80 columns
        title="Trained policies; gap: nats per text to the optimum at the same β",
    )
    for heading, *_ in COLUMNS:
        table.add_column(heading, justify="right")
    for run in result["trained"]:
        table.add_row(*(f"{run[name]:{form}}" if name in run else "" for _, name, form in COLUMNS))
    console.print(table)


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    args = cli.parse(Args, argv, __doc__, smoke=SMOKE)
    cli.positive(args, "updates", "num_envs", "eval_episodes")
    cli.at_least(FEWEST_SAMPLES, args, "start_episodes")
    if not args.betas or not all(0 < beta < math.inf for beta in args.betas):
        raise ValueError(f"--betas {args.betas}: needs numbers above 0, one or more")
    out, console = Path(args.out), Console()
    out.mkdir(parents=True, exist_ok=True)
    start = make_model(args, args.betas[0]).policy  # not yet trained
    frontier = start_frontier(
        start,
        training.make_env(task(args), args.sentiment_model, min(512, args.start_episodes)),
        args.start_episodes,
        judges={"vader": load_sentiment_model("vader")},
        cache=out / "start.npz",
    )
    result: dict[str, Any] = {"arguments": vars(args), **curves(frontier), "trained": []}
    for beta in args.betas:
        result["trained"].append(train(args, beta, frontier))
        console.print(f"β = {beta}: sentiment {result['trained'][-1]['sentiment']:.3f}")
    result["trained"].sort(key=lambda run: run["kl"])
    (out / "frontier.json").write_text(json.dumps(result, indent=2), "utf-8")
    write_sheet([panel(result, *one) for one in PANELS], out / "frontier.png")
    show(console, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
