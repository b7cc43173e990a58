"""Timing contenders side by side: interleaved in one process, compared by the median of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from agents import GPT2


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


class Machine(NamedTuple):
    """What this machine does at best, measured: the floor under everything that reads weights and multiplies."""

    flops: float  # a second, of a product of two matrices of 4096 rows and columns (2048 on a CPU)
    bytes: float  # a second, read from memory

    @classmethod
    def measured(cls, device: str, dtype: torch.dtype) -> Machine:
        """The best of a few runs."""
        n, numbers = (4096, 2**28) if torch.device(device).type == "cuda" else (2048, 2**26)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        long = torch.ones(numbers, device=device)
        multiply = min(timed(lambda: a @ b) for _ in range(8))
        read = min(timed(long.sum) for _ in range(8))
        return cls(2 * n**3 / multiply, 4 * numbers / read)

    def floor(self, model: GPT2, rows: int, passes: float = 1) -> float:
        """Seconds of bringing `rows` tokens through a model, whose weights are read once, at the least."""
        weights = (
            sum(p.numel() for p in model.parameters() if p.ndim == 2) - model.wpe.weight.numel()
        )
        size = weights * model.wte.weight.element_size()
        return passes * max(2 * rows * weights / self.flops, size / self.bytes)


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
