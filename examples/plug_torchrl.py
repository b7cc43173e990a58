"""TextSentiment-v0 in torchrl: a rollout, and a few updates of its own PPO loss.

    pip install torchrl
    python examples/plug_torchrl.py                  # half a minute on one CPU core

For torchrl a vector environment must be made with autoreset_mode="Disabled"; it resets ended rows itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import torch
from gymnasium.spaces import Box
from torch import nn

import text_sentiment_env  # noqa: F401  (registers the id)
from agents import TokenEmbedding, cli


@dataclass
class Args:
    """All flags."""

    updates: int = 20
    """rollouts to learn from"""
    num_envs: int = 16
    """texts side by side"""
    steps: int = 64
    """tokens a row and rollout"""
    sentiment_model: str = "vader"
    """the judge"""


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> float:
    """Trains, printing as it goes; returns the mean reward of the last rollout's texts."""
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "updates", "num_envs", "steps")
    # After the arguments: --help works without torchrl.
    from tensordict.nn import TensorDictModule
    from torchrl.envs import GymEnv, GymWrapper, check_env_specs
    from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    torch.manual_seed(0)

    # The single environment by its id: what torchrl's own examples do.
    single = GymEnv("TextSentiment-v0", sentiment_model=args.sentiment_model)
    check_env_specs(single)
    print(single.rollout(max_steps=20))

    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=args.num_envs,
        sentiment_model=args.sentiment_model,
        autoreset_mode="Disabled",
    )
    space, actions = envs.single_observation_space, int(envs.single_action_space.n)  # type: ignore[attr-defined]
    env = GymWrapper(envs)
    assert isinstance(space, Box)

    def network(outputs: int) -> nn.Module:
        embedding = TokenEmbedding(space)
        layers = [nn.Linear(embedding.features_dim, 128), nn.Tanh(), nn.Linear(128, outputs)]
        return nn.Sequential(embedding, *layers)

    actor = ProbabilisticActor(
        TensorDictModule(Rows(network(actions)), ["observation"], ["logits"]),
        spec=env.action_spec,
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(Rows(network(1)), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    reward = float("nan")
    for update in range(args.updates):
        with torch.no_grad():
            data = env.rollout(args.steps, actor, break_when_any_done=False)
        ended = data["next", "done"]
        reward = data["next", "reward"][ended].mean().item()
        print(f"update {update + 1:3d}  reward {reward:+.3f} over {int(ended.sum())} texts")
        advantage(data)
        for _ in range(4):
            for rows in torch.randperm(data.numel()).split(256):
                terms = loss(data.flatten()[rows])
                total = terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    return reward


class Rows(nn.Module):
    """A network of rows (n, L) for observations (..., L), of whatever leading shape."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """(..., L) to (..., outputs)."""
        return self.network(obs.flatten(0, -2)).unflatten(0, obs.shape[:-1])


if __name__ == "__main__":
    main()
