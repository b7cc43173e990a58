"""How cost grows with new tokens T, rows B, vocabulary V and model size: cached generation, and an update's step.

One axis at a time from a common base point, with the local log-log slope between neighbours. The theory beside it
counts the matrix products: per token 2 for each weight of the blocks and the head, and attention's 4·C·layers for each
earlier token; a step costs four forward passes (policy, its backward pass of two, reference).

python tests/benchmarks/bench_growth.py [--axes T B V size] [--max-seconds 20] [--out runs/growth]
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import matplotlib
import torch
from common import report, setting, timed
from rivals import KL, free

from agents import REINFORCE, GPT2Config, GPT2Policy
from agents.rollout import Episodes
from text_sentiment_env import Vocabulary

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter


class Point(NamedTuple):
    """What is varied."""

    T: int = 20  # new tokens
    B: int = 8  # rows
    V: int = 4096  # tokens of the vocabulary
    size: tuple[int, int] = (4, 256)  # layers, channels

    def flops(self) -> dict[str, float]:
        """Of the matrix products."""
        layers, C = self.size
        token = 24 * layers * C**2 + 2 * self.V * C + 2 * self.T * layers * C
        return {"generation": self.B * self.T * token, "update": 4 * self.B * self.T * token}

    def gigabytes(self) -> float:
        """What a step needs at its peak, roughly: five of (B, T, V), and the activations."""
        layers, C = self.size
        return 4 * self.B * self.T * (5 * self.V + 32 * layers * C) / 1e9


AXES = {
    "T": [20, 50, 100, 200, 500, 1000],
    "B": [1, 8, 64, 256, 1024],
    "V": [100, 1024, 4096, 16384, 50257],
    "size": [(2, 64), (4, 256), (6, 512), (12, 768)],
}
TITLES = {"T": "new tokens T", "B": "rows B", "V": "vocabulary V", "size": "weights of the blocks"}


def measure(point: Point, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of generating, and of a step on, B texts of T tokens: the median of a few, after one to warm up."""
    layers, C = point.size
    vocabulary = Vocabulary(range(point.V - 1))
    envs = gym.make_vec(
        "text_sentiment_env:TextSentiment-v0",
        num_envs=point.B,
        vocabulary=vocabulary,
        max_tokens=point.T,
        sentiment_model=free,
        target_length=(0, point.T),
    )
    shape = GPT2Config(point.V, 1 + point.T, C, layers, max(1, C // 64))
    model = REINFORCE(
        GPT2Policy,
        envs,
        kl_coef=KL,
        baseline="none",
        policy_kwargs={"config": shape},
        precision=args.dtype,
        device=args.device,
    )
    model.learn(0)  # makes the logger
    policy, device = model.policy, args.device
    texts = torch.randint(point.V - 1, (point.B, point.T), device=device)
    mask, rewards = torch.ones_like(texts, dtype=torch.bool), torch.rand(texts.shape).to(device)
    episodes = Episodes(texts, mask, rewards, [{}] * point.B)
    start = torch.full((point.B, 1), point.V - 1, device=device)

    def generate() -> None:
        with torch.inference_mode(), policy.autocast():
            policy.gpt2.generate(start, point.T, end_index=-1)

    seconds = {}
    for name, run in (("generation", generate), ("update", lambda: model.train(episodes))):
        first = timed(run)
        rounds = 1 if first > args.max_seconds / 4 else 3
        seconds[name] = statistics.median(timed(run) for _ in range(rounds))
    return seconds


def weights(size: tuple[int, int]) -> int:
    """Of the blocks' matrices."""
    return 12 * size[0] * size[1] ** 2


def slope(low: float, high: float, step: float) -> str:
    """Of a log-log plot between two neighbours whose places have the ratio `step`."""
    return f"{math.log(high / low) / math.log(step):.2f}"


def walk(axis: str, args: argparse.Namespace) -> list[tuple[float, Point, dict[str, float]]]:
    """Measures along one axis as far as time and memory allow; prints its table."""
    found: list[tuple[float, Point, dict[str, float]]] = []
    rows = []
    for value in AXES[axis]:
        point = Point()._replace(**{axis: value})
        place = float(weights(value) if axis == "size" else value)
        growth = point.flops()["update"] / found[-1][1].flops()["update"] if found else 0.0
        expected = growth * max(found[-1][2].values()) if found else 0.0
        if expected > args.max_seconds or point.gigabytes() > args.max_gigabytes:
            print(
                f"{axis}={value} is skipped: about {expected:.0f} s a run and"
                f" {point.gigabytes():.1f} GB, with --max-seconds {args.max_seconds:g} and"
                f" --max-gigabytes {args.max_gigabytes:g}"
            )
            continue
        seconds, flops = measure(point, args), point.flops()
        cells = [f"{value[0]} × {value[1]}" if axis == "size" else f"{value:,}"]
        for name in seconds:
            cells += [f"{seconds[name]:.4f}", "", ""]
            if found:
                step, before = place / found[-1][0], found[-1][1].flops()
                cells[-2] = slope(found[-1][2][name], seconds[name], step)
                cells[-1] = slope(before[name], flops[name], step)
        rows.append(cells)
        found.append((place, point, seconds))
    columns = [axis, "generation, s", "slope", "theory", "update, s", "slope", "theory"]
    report(f"{TITLES[axis]}, {args.dtype}, {setting(args.device)}", columns, rows)
    return found


def draw(axes: dict[str, list[tuple[float, Point, dict[str, float]]]], file: Path) -> None:
    """A log-log panel an axis, the theory dashed through the last point."""
    figure, panels = plt.subplots(1, len(axes), figsize=(4 * len(axes), 4), layout="constrained")
    for panel, (axis, found) in zip(
        [panels] if len(axes) == 1 else panels, axes.items(), strict=True
    ):
        places = [place for place, _, _ in found]
        for color, name in zip(("C0", "C1"), ("generation", "update"), strict=True):
            theory = [point.flops()[name] for _, point, _ in found]
            last = found[-1][2][name] / theory[-1]
            panel.loglog(places, [s[name] for _, _, s in found], "o-", color=color, label=name)
            panel.loglog(places, [last * flops for flops in theory], "--", color=color, alpha=0.6)
        panel.set(xlabel=TITLES[axis], title=f"cost over {TITLES[axis]}")
        panel.grid(alpha=0.3, which="both")
        panel.xaxis.set_minor_formatter(NullFormatter())
    first = panels if len(axes) == 1 else panels[0]
    first.set_ylabel("seconds (dashed: operations, through the last point)")
    first.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Runs, prints and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--max-seconds", type=float, default=20, help="skips longer runs")
    parser.add_argument("--max-gigabytes", type=float, default=8, help="skips larger steps")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    args = parser.parse_args()
    base = Point()
    print(f"Base point: T={base.T}, B={base.B}, V={base.V}, {base.size[0]} × {base.size[1]}")
    draw({axis: walk(axis, args) for axis in args.axes}, args.out / "growth.png")
    print(f"Drawn: {args.out / 'growth.png'}")


if __name__ == "__main__":
    main()
