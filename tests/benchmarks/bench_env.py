"""Environment steps per second beside CartPole's, with a judge that costs nothing.

python tests/benchmarks/bench_env.py [--num-envs 64 1024] [--seconds 1] [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics

import gymnasium as gym
import numpy as np
from common import report
from gymnasium.utils.performance import benchmark_step, benchmark_vector_step

import text_sentiment_env  # noqa: F401


def free(texts: list[str]) -> np.ndarray:
    """A judge that costs nothing."""
    return np.zeros(len(texts))


def main() -> None:
    """Runs and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for num_envs in [None, *args.num_envs]:
        if num_envs is None:
            ours = gym.make("TextSentiment-v0", sentiment_model=free).unwrapped
            rival = gym.make("CartPole-v1").unwrapped
            run = benchmark_step
        else:
            ours = gym.make_vec("TextSentiment-v0", num_envs=num_envs, sentiment_model=free)
            rival = gym.make_vec("CartPole-v1", num_envs=num_envs)
            run = benchmark_vector_step
        speeds = [
            (run(ours, args.seconds, seed=n), run(rival, args.seconds, seed=n))
            for n in range(args.rounds)
        ]
        ratios = [a / b for a, b in speeds]
        rows.append(
            [
                f"vector ({num_envs:,} rows)" if num_envs else "single",
                f"{statistics.median(a for a, _ in speeds):,.0f}",
                f"{statistics.median(b for _, b in speeds):,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        )
    columns = ["environment", "our steps/s", "CartPole's", "ratio of speeds (least to largest)"]
    report("Environment steps, actions sampled from the action space", columns, rows)


if __name__ == "__main__":
    main()
