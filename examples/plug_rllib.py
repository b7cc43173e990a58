"""TextSentiment-v0 in RLlib: its PPO for a few iterations, over vectors of tokens.

pip install "ray[rllib]"
python examples/plug_rllib.py --iterations 2     # a minute or two on one CPU core

RLlib vectorises the environment itself, from the single one.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.tune import register_env
from torch import nn

from agents import TokenEmbedding


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


def make_env(arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    """Made in a worker process, where importing the package registers the id."""
    return gym.make("text_sentiment_env:TextSentiment-v0", **arguments)


def main(argv: list[str] | None = None) -> float:
    """Trains, printing as it goes; returns the last iteration's mean reward."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=2, help="rollouts to learn from (2)")
    parser.add_argument("--batch-size", type=int, default=2_000, help="tokens in each (2,000)")
    parser.add_argument("--sentiment-model", default="vader", help="the judge (vader)")
    args = parser.parse_args(argv)
    register_env("TextSentiment", make_env)
    config = (
        PPOConfig()
        .environment("TextSentiment", env_config={"sentiment_model": args.sentiment_model})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TokenModule))
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
