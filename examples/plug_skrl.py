"""TextSentiment-v0 in skrl: its PPO for a few thousand tokens, over vectors of tokens.

    pip install skrl
    python examples/plug_skrl.py                             # half a minute on one CPU core

skrl steps the native vector environment. Its PPO learns from every step, so that ended texts must
restart in the same step: autoreset_mode="SameStep".
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import nn

import text_sentiment_env  # noqa: F401  (registers the id)
from agents import TokenEmbedding, cli

ROLLOUT = 64  # steps of all environments before PPO learns from them


@dataclass
class Args:
    """All flags."""

    steps: int = 1_280
    """steps of all environments"""
    num_envs: int = 16
    """texts side by side"""
    sentiment_model: str = "vader"
    """the judge"""
    learning_rate: float = 1e-3
    """Adam's"""
    seed: int = 0
    """seed of everything random"""


def network(space: gym.Space[Any], outputs: int) -> nn.Module:
    """An MLP over vectors of the tokens."""
    embedding = TokenEmbedding(space)
    layers = [nn.Linear(embedding.features_dim, 128), nn.Tanh(), nn.Linear(128, outputs)]
    return nn.Sequential(embedding, *layers)


class Ends(gym.vector.VectorWrapper):
    """Keeps the reward of each text that has ended."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        super().__init__(env)
        self.rewards: list[float] = []

    def step(self, actions: Any) -> Any:
        """As the environment's."""
        step = self.env.step(actions)
        self.rewards += step[1][step[2]].tolist()
        return step


def make_agent(env: Any, args: Args, folder: str) -> Any:
    """A new PPO of skrl, which may write to `folder`."""
    # Here, because --help doesn't need it.
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model

    class Policy(CategoricalMixin, Model):
        """Logits of the next token."""

        def __init__(self, **spaces: Any) -> None:
            Model.__init__(self, **spaces)
            CategoricalMixin.__init__(self)
            self.network = network(self.observation_space, self.num_actions)

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, Any]:
            return self.network(inputs["observations"]), {}

    class Value(DeterministicMixin, Model):
        """Values."""

        def __init__(self, **spaces: Any) -> None:
            Model.__init__(self, **spaces)
            DeterministicMixin.__init__(self)
            self.network = network(self.observation_space, 1)

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, Any]:
            return self.network(inputs["observations"]), {}

    configuration = PPO_CFG(
        rollouts=ROLLOUT,
        learning_epochs=4,
        mini_batches=4,
        discount_factor=1.0,
        learning_rate=args.learning_rate,
        entropy_loss_scale=0.01,
        value_loss_scale=0.5,
    )
    configuration.experiment.directory = folder
    configuration.experiment.write_interval = 0
    configuration.experiment.checkpoint_interval = 0
    spaces = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "device": env.device,
    }
    return PPO(
        models={"policy": Policy(**spaces), "value": Value(**spaces)},
        memory=RandomMemory(memory_size=ROLLOUT, num_envs=args.num_envs, device=env.device),
        cfg=configuration,
        **spaces,
    )


def train(args: Args) -> float:
    """Trains, printing as it goes; returns the mean reward of the last 100 texts."""
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg
    from skrl.utils import set_seed

    set_seed(args.seed)
    ends = Ends(
        gym.make_vec(
            "TextSentiment-v0",
            num_envs=args.num_envs,
            sentiment_model=args.sentiment_model,
            autoreset_mode="SameStep",
        )
    )
    env = wrap_env(ends, wrapper="gymnasium")
    configuration = SequentialTrainerCfg(
        timesteps=args.steps,
        headless=True,
        disable_progressbar=None,  # shown on a terminal only
        close_environment_at_exit=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        agent = make_agent(env, args, folder)
        SequentialTrainer(env=env, agents=agent, cfg=configuration).train()
    first, last = ends.rewards[:100], ends.rewards[-100:]
    print(f"reward of the first 100 texts {sum(first) / len(first):+.3f}")
    print(f"reward of the last 100 texts {sum(last) / len(last):+.3f}")
    return sum(last) / len(last)


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> float:
    """Trains; returns the mean reward of the last 100 texts."""
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "steps", "num_envs")
    return train(args)


if __name__ == "__main__":
    main()
