"""What a training run leaves to read: tables, sample texts, learning curves, and where it ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3 as sb3
import torch

import text_sentiment_env
from agents import distributed
from agents.atomic import atomic_write
from agents.callbacks import UPDATES, read_rows

Sample = Mapping[str, Any]  # text and reward, of `agents.evaluation.evaluate`

MEASURES = (
    "reward",
    "sentiment",
    "vader",
    "length",
    "end_rate",
    "entropy",
    "kl",
    "perplexity",
    "distinct_1",
    "distinct_2",
    "distinct_texts",
)
# Title, column of progress.csv, measure of an evaluation.
PANELS = (
    ("reward", "rollout/ep_rew_mean", "reward"),
    ("sentiment", "rollout/sentiment", "sentiment"),
    ("length (tokens)", "rollout/length", "length"),
    ("KL to the start model (nats a text)", "train/kl", "kl"),
    ("entropy (nats a token)", "train/entropy", "entropy"),
    ("share of texts that end by themselves", "rollout/end_rate", "end_rate"),
)


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
    path: Path, title: str, before: Sequence[Sample], after: Sequence[Sample]
) -> None:
    """Texts before and after training, side by side, with their rewards, as Markdown."""
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
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ↵ ") or "*(empty)*"


def plot(progress: Path, path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Draws learning curves, with the evaluations before and after as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_rows(progress)
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    last = float(rows[-1][UPDATES]) if rows else 0
    for axis, (title, column, measure) in zip(axes.flat, PANELS, strict=True):
        points = [(float(r[UPDATES]), float(r[column])) for r in rows if r.get(column)]
        if points:
            axis.plot(*zip(*points, strict=True), color="tab:blue", lw=1.2, label="training batch")
        values = (before[measure], after[measure])
        axis.plot((0, last), values, "o", color="tab:orange", label="evaluation")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def plot_runs(logs: Mapping[str, Path], path: Path) -> None:
    """Draws the learning curves of several runs, each with its log progress.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    for name, log in logs.items():
        rows = read_rows(log)
        for axis, (title, column, _) in zip(axes.flat, PANELS, strict=True):
            points = [(float(r[UPDATES]), float(r[column])) for r in rows if r.get(column)]
            if points:
                axis.plot(*zip(*points, strict=True), lw=1.2, label=name)
            axis.set(title=title, xlabel="update")
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
