"""PPO in one file, in the manner of CleanRL, on Gymnasium's vector environment as it is.

    python examples/ppo_cleanrl.py                                  # half a minute on one CPU core
    python examples/ppo_cleanrl.py --sentiment-model bundled --total-timesteps 200000

After "The 37 Implementation Details of Proximal Policy Optimization" (Huang et al. 2022). One detail is
Gymnasium 1's: in mode NEXT_STEP the step after the end of a text only starts the next one. It ignores its
action, so that it must not be learned from.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import text_sentiment_env  # noqa: F401  (registers the id)
from agents import cli


@dataclass
class Args:
    """All flags."""

    seed: int = 1
    """seed of everything random"""
    sentiment_model: str = "vader"
    """the judge; bundled is harder"""
    max_tokens: int = 20
    """the most tokens a text may have"""
    total_timesteps: int = 40_000
    """steps of all environments"""
    num_envs: int = 16
    """texts written side by side"""
    num_steps: int = 128
    """steps between two updates"""
    learning_rate: float = 1e-3
    """Adam's, falling to 0"""
    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 0.95
    """lambda of the advantage estimate"""
    num_minibatches: int = 8
    """parts of a batch"""
    update_epochs: int = 4
    """passes over a batch"""
    clip_coef: float = 0.2
    """clipping of the probability ratio"""
    ent_coef: float = 0.01
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """the gradient is clipped to this norm"""

    @property
    def batch_size(self) -> int:
        """Steps of all environments in an update."""
        return self.num_envs * self.num_steps


def parse_arguments(argv: Sequence[str] | None = None) -> Args:
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "max_tokens", "num_envs", "num_steps", "num_minibatches", "update_epochs")
    if args.batch_size < 4 * args.num_minibatches:  # half of the steps may only start a text
        raise ValueError(
            f"--num-minibatches {args.num_minibatches}: too many for a batch of {args.batch_size}"
            " steps; each needs at least four"
        )
    if args.total_timesteps < args.batch_size:
        raise ValueError(
            f"--total-timesteps {args.total_timesteps} is less than one batch of --num-envs"
            f" {args.num_envs} times --num-steps {args.num_steps}"
        )
    return args


class Agent(nn.Module):
    """An actor and a critic over vectors of the last tokens, and of all tokens' mean and number."""

    def __init__(self, envs: gym.vector.VectorEnv, width: int = 128, embedding_dim: int = 32):
        super().__init__()
        assert isinstance(envs.single_action_space, gym.spaces.Discrete)
        self.pad = int(envs.single_action_space.n)
        self.tokens = nn.Embedding(self.pad + 1, embedding_dim)
        self.lengths = nn.Embedding(envs.single_observation_space.shape[0] + 1, embedding_dim)  # type: ignore[index]
        self.actor = self._mlp(6 * embedding_dim, width, self.pad, 0.01)
        self.critic = self._mlp(6 * embedding_dim, width, 1, 1.0)

    def _mlp(self, inputs: int, width: int, outputs: int, gain: float) -> nn.Sequential:
        layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)]
        for layer, std in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
            nn.init.orthogonal_(layer.weight, std)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def features(self, obs: Tensor) -> Tensor:
        """(B, L) token ids to (B, 6 * embedding_dim)."""
        written = obs != self.pad
        length = written.sum(1)
        places = length[:, None] - 1 - torch.arange(4)
        last = obs.gather(1, places.clamp(min=0)).masked_fill(places < 0, self.pad)
        mean = (self.tokens(obs) * written[..., None]).sum(1) / length.clamp(min=1)[:, None]
        return torch.cat([self.tokens(last).flatten(1), mean, self.lengths(length)], 1)

    def forward(self, obs: Tensor) -> tuple[Categorical, Tensor]:
        """The distribution of the next token, and the value (B,)."""
        features = self.features(obs)
        return Categorical(logits=self.actor(features)), self.critic(features)[:, 0]


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> float:
    """Trains, printing as it goes; returns the mean reward of the last 100 texts."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    shuffle = np.random.default_rng(args.seed)
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=args.num_envs,
        sentiment_model=args.sentiment_model,
        max_tokens=args.max_tokens,
        autoreset_mode="NextStep",  # the default
    )
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    T, N = args.num_steps, args.num_envs
    obs = torch.zeros(T, N, *envs.single_observation_space.shape, dtype=torch.int64)  # type: ignore[misc]
    actions = torch.zeros(T, N, dtype=torch.int64)
    logprobs, rewards, dones, values = (torch.zeros(T, N) for _ in range(4))

    next_obs = torch.as_tensor(envs.reset(seed=args.seed)[0])
    next_done = torch.zeros(N)  # 1: next_obs ends a text, and the coming step starts another
    recent: deque[float] = deque(maxlen=100)
    started, iterations = time.time(), args.total_timesteps // args.batch_size
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = (1 - iteration / iterations) * args.learning_rate
        for t in range(T):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                distribution, values[t] = agent(next_obs)
                actions[t] = distribution.sample()
                logprobs[t] = distribution.log_prob(actions[t])
            new_obs, reward, terminated, truncated, infos = envs.step(actions[t].numpy())
            rewards[t] = torch.as_tensor(reward)
            next_obs = torch.as_tensor(new_obs)
            next_done = torch.as_tensor(terminated | truncated).float()
            if "episode" in infos:
                recent.extend(infos["episode"]["r"][infos["_episode"]])

        # Generalised advantage estimation. Where next_done is 1 nothing is carried over from the step
        # behind: neither its value, nor the advantage of the step that only restarts.
        with torch.no_grad():
            advantages = torch.zeros_like(rewards)
            carried, following = torch.zeros(N), agent(next_obs)[1]
            for t in reversed(range(T)):
                goes_on = 1 - (dones[t + 1] if t + 1 < T else next_done)
                delta = rewards[t] + args.gamma * following * goes_on - values[t]
                carried = delta + args.gamma * args.gae_lambda * goes_on * carried
                advantages[t], following = carried, values[t]
        returns = advantages + values
        acted = (dones == 0).flatten()  # the other steps ignored their action
        b_obs, b_actions, b_logprobs, b_advantages, b_returns = (
            x.flatten(0, 1)[acted] for x in (obs, actions, logprobs, advantages, returns)
        )

        for _ in range(args.update_epochs):
            for rows in np.array_split(shuffle.permutation(len(b_obs)), args.num_minibatches):
                distribution, value = agent(b_obs[rows])
                ratio = (distribution.log_prob(b_actions[rows]) - b_logprobs[rows]).exp()
                advantage = b_advantages[rows]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
                value_loss = 0.5 * ((value - b_returns[rows]) ** 2).mean()
                entropy = distribution.entropy().mean()
                loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        step = (iteration + 1) * args.batch_size
        if iteration % max(1, iterations // 15) == 0 or iteration + 1 == iterations:
            mean = f"{np.mean(recent):+.3f}" if recent else "none yet"
            print(
                f"step {step:7,}  reward {mean}  entropy {entropy.item():.2f}"
                f"  {step / (time.time() - started):,.0f} steps/s",
                flush=True,
            )
    texts = [envs.unwrapped.vocabulary.decode(row[row < agent.pad]) for row in next_obs.numpy()[:4]]  # type: ignore[attr-defined]
    print("being written:", *texts, sep="\n  ")
    envs.close()
    return float(np.mean(recent)) if recent else math.nan


if __name__ == "__main__":
    main()
