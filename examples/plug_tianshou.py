"""TextSentiment-v0 in tianshou 2: its PPO for a few epochs, over vectors of tokens.

    pip install tianshou
    python examples/plug_tianshou.py                         # half a minute on one CPU core

tianshou vectorises the single environment itself. It needs the same info keys at every step, which
`InfoAtEveryStep` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from torch import nn

from agents import TokenEmbedding, cli
from text_sentiment_env.wrappers import InfoAtEveryStep


@dataclass
class Args:
    """All flags."""

    epochs: int = 5
    """parts of the training, with an evaluation after each"""
    steps: int = 4_096
    """tokens an epoch"""
    num_envs: int = 16
    """texts side by side"""
    sentiment_model: str = "vader"
    """the judge"""
    learning_rate: float = 1e-3
    """Adam's"""
    seed: int = 0
    """seed of everything random"""


def make_env(sentiment_model: str) -> gym.Env[Any, Any]:
    """One environment for tianshou."""
    return InfoAtEveryStep(gym.make("TextSentiment-v0", sentiment_model=sentiment_model))


class Network(nn.Module):
    """An MLP over vectors of the tokens, in the form that tianshou calls."""

    def __init__(self, space: gym.Space[Any], outputs: int) -> None:
        super().__init__()
        embedding = TokenEmbedding(space)
        layers = [nn.Linear(embedding.features_dim, 128), nn.Tanh(), nn.Linear(128, outputs)]
        self.layers = nn.Sequential(embedding, *layers)

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """(B, L) tokens to (B, outputs), and the state, which is none."""
        return self.layers(torch.as_tensor(obs)), state


class Critic(Network):
    """Values alone: tianshou's critics return no state."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> torch.Tensor:  # type: ignore[override]
        """(B, L) tokens to (B, 1)."""
        return super().forward(obs)[0]


def train(args: Args) -> float:
    """Trains, printing as it goes; returns the mean reward of 100 fresh texts."""
    # Here, because --help doesn't need it.
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams

    torch.manual_seed(args.seed)
    make = partial(make_env, args.sentiment_model)
    envs, test_envs = (DummyVectorEnv([make] * args.num_envs) for _ in range(2))
    for seed, each in enumerate((envs, test_envs)):
        each.seed(args.seed + 1_000 * seed)
    env = make()
    space, actions = env.observation_space, env.action_space
    assert isinstance(actions, gym.spaces.Discrete)
    algorithm = PPO(
        policy=DiscreteActorPolicy(
            actor=Network(space, int(actions.n)),
            action_space=actions,
            observation_space=space,
        ),
        critic=Critic(space, 1),
        optim=AdamOptimizerFactory(lr=args.learning_rate),
        gamma=1.0,
        max_grad_norm=0.5,
    )
    buffer = VectorReplayBuffer(64 * args.num_envs, args.num_envs)
    test_collector = Collector(algorithm, test_envs)
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, envs, buffer),
            test_collector=test_collector,
            max_epochs=args.epochs,
            epoch_num_steps=args.steps,
            collection_step_num_env_steps=64 * args.num_envs,
            batch_size=256,
            update_step_num_repetitions=4,
            test_step_num_episodes=50,
            show_progress=False,
        )
    )
    result = test_collector.collect(n_episode=100, reset_before_collect=True)
    print(f"mean reward of 100 fresh texts: {result.returns.mean():+.3f}")
    return float(result.returns.mean())


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> float:
    """Trains, evaluates; returns the mean reward of 100 fresh texts."""
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "epochs", "steps", "num_envs")
    return train(args)


if __name__ == "__main__":
    main()
