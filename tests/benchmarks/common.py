"""Timing contenders side by side: interleaved in one process, compared by the median of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table


def now() -> float:
    """Seconds on a clock, read when the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    began = now()
    run()
    return now() - began


def interleave(
    contenders: dict[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender's rounds, run in turn A B A B … so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        for name, run in contenders.items():
            spent = timed(run)
            if number >= warmup:
                seconds[name].append(spent)
    return seconds


def ratio(ours: list[float], rival: list[float]) -> tuple[float, float, float]:
    """Median, least and largest of rival / ours, round by round: above 1 we are faster."""
    ratios = [b / a for a, b in zip(ours, rival, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def report(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table that can be pasted into markdown."""
    table = Table(*columns, title=title, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def setting(device: str | None = None) -> str:
    """The machine, for the caption."""
    cuda = torch.cuda.is_available() and not str(device).startswith("cpu")
    where = torch.cuda.get_device_name() if cuda else "CPU"
    return f"{where}, torch {torch.__version__}, {torch.get_num_threads()} threads"
