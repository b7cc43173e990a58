"""TextSentiment-v0 in RLlib: its PPO for a few iterations, over vectors of tokens.

    pip install "ray[rllib]"
    python examples/plug_rllib.py --iterations 2     # a minute or two on one CPU core

RLlib vectorises the environment itself, from the single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import nn

from agents import TokenEmbedding, cli


@dataclass
class Args:
    """All flags."""

    iterations: int = 2
    """rollouts to learn from"""
    batch_size: int = 2_000
    """tokens in each"""
    sentiment_model: str = "vader"
    """the judge"""


def make_module() -> type:
    """The class of the networks; imported here, so that --help works without ray."""
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
    from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

    class TokenModule(TorchRLModule, ValueFunctionAPI):
        """Actor and critic on one embedding; RLlib's own networks take no integers."""

        def setup(self) -> None:
            """Makes the networks."""
            self.embedding = TokenEmbedding(self.observation_space)
            width = self.embedding.features_dim
            self.body = nn.Sequential(nn.Linear(width, 128), nn.Tanh())
            self.actor, self.critic = nn.Linear(128, int(self.action_space.n)), nn.Linear(128, 1)

        def _features(self, batch: dict[str, Any]) -> torch.Tensor:
            return self.body(self.embedding(batch[Columns.OBS]))

        def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {Columns.ACTION_DIST_INPUTS: self.actor(self._features(batch))}

        def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
            """Values (B,)."""
            return self.critic(self._features(batch))[:, 0]

    return TokenModule


def make_env(arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    """Made in a worker process, where importing the package registers the id."""
    return gym.make("text_sentiment_env:TextSentiment-v0", **arguments)


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> float:
    """Trains, printing as it goes; returns the last iteration's mean reward."""
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "iterations", "batch_size")
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune import register_env

    register_env("TextSentiment", make_env)
    config = (
        PPOConfig()
        .environment("TextSentiment", env_config={"sentiment_model": args.sentiment_model})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=make_module()))
        .training(train_batch_size=args.batch_size, gamma=1.0, lr=1e-3)
    )
    algorithm = config.build_algo()
    reward = float("nan")
    for iteration in range(args.iterations):
        result = algorithm.train()["env_runners"]
        reward = float(result["episode_return_mean"])
        print(
            f"iteration {iteration + 1}  reward {reward:+.3f}"
            f"  length {result['episode_len_mean']:.1f}"
        )
    algorithm.stop()
    return reward


if __name__ == "__main__":
    main()
