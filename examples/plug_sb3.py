"""Stock agents of stable-baselines3 and sb3-contrib on TextSentiment-v0.

    pip install sb3-contrib
    python examples/plug_sb3.py ppo                      # half a minute on one CPU core
    python examples/plug_sb3.py ppo --policy gpt2        # a GPT-2 in the stock algorithm
    python examples/plug_sb3.py dqn --tokens 50000 --save runs/dqn

Agents: a2c, dqn, maskable (MaskablePPO), ppo, recurrent (RecurrentPPO), trpo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import tyro
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

import text_sentiment_env  # noqa: F401  (registers the id)
from agents import GPT2Policy, SB3VecEnv, TokenEmbedding, cli

AgentName = Literal["a2c", "dqn", "maskable", "ppo", "recurrent", "trpo"]


@dataclass
class Args:
    """All flags."""

    agent: tyro.conf.Positional[AgentName]
    """the algorithm"""
    policy: Literal["mlp", "gpt2"] = "mlp"
    """gpt2: for a2c and ppo"""
    tokens: int = 20_000
    """tokens to write in training"""
    sentiment_model: str = "vader"
    """the judge"""
    learning_rate: float = 1e-3
    """the optimizer's"""
    seed: int = 0
    """seed of everything random"""
    save: str | None = None
    """file to write the trained agent to"""


def find_agent(name: AgentName) -> tuple[Any, dict[str, Any]]:
    """An algorithm and its arguments; sb3_contrib is imported for its own algorithms alone."""
    if name == "a2c":
        return A2C, {"n_steps": 20}
    if name == "dqn":
        return DQN, {"learning_starts": 1_000, "gradient_steps": 8}
    arguments = {"n_steps": 64, "batch_size": 256}
    if name == "ppo":
        return PPO, arguments
    import sb3_contrib

    classes = {"maskable": "MaskablePPO", "recurrent": "RecurrentPPO", "trpo": "TRPO"}
    return getattr(sb3_contrib, classes[name]), arguments


def make_env(sentiment_model: str, num_envs: int = 16) -> VecMonitor:
    """The native vector environment, as stable-baselines3 wants it."""
    envs = gym.make_vec("TextSentiment-v0", num_envs=num_envs, sentiment_model=sentiment_model)
    return VecMonitor(SB3VecEnv(envs), info_keywords=("sentiment",))


class CacheReport(BaseCallback):
    """Counts the tokens of the rollouts that GPT2Policy's prefix cache did not have to read again."""

    read = reused = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:  # before the update, which empties the cache
        cache = self.model.policy.prefix_cache(self.training_env.num_envs)  # type: ignore[operator]
        self.read += cache.tokens_read
        self.reused += cache.tokens_reused


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> float:
    """Trains, evaluates, saves; returns the mean reward of 100 fresh texts."""
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "tokens")
    algorithm, arguments = find_agent(args.agent)
    env = make_env(args.sentiment_model)
    policy: Any = "MlpLstmPolicy" if args.agent == "recurrent" else "MlpPolicy"
    if args.policy == "gpt2":
        if args.agent not in ("a2c", "ppo"):
            raise ValueError(
                f"--policy gpt2: {args.agent} takes no actor-critic policy; use a2c or ppo"
            )
        policy = GPT2Policy
        # With the GPT-2 token of each action, `python -m agents` can write with the saved agent.
        tokens = env.get_attr("vocabulary")[0].token_ids.tolist()
        arguments = arguments | {"policy_kwargs": {"config": {"token_ids": tokens}}}
    else:
        arguments = arguments | {
            "policy_kwargs": {"features_extractor_class": TokenEmbedding, "net_arch": [128, 128]}
        }
    model = algorithm(
        policy,
        env,
        learning_rate=args.learning_rate,
        gamma=1.0,
        seed=args.seed,
        **arguments,
    )
    report = CacheReport()
    callbacks: list[BaseCallback] = [EvalCallback(make_env(args.sentiment_model), eval_freq=300)]
    if args.policy == "gpt2":
        callbacks.append(report)
    model.learn(args.tokens, CallbackList(callbacks), progress_bar=True)
    if report.read:
        share = report.reused / (report.read + report.reused)
        print(f"prefix cache: {share:.0%} of the tokens shown in rollouts were not read again")
    reward, deviation = evaluate_policy(
        model, make_env(args.sentiment_model), 100, deterministic=args.agent == "dqn"
    )
    print(f"mean reward of 100 fresh texts: {reward:+.3f}, standard deviation {deviation:.3f}")
    if args.save:
        model.save(args.save)
    return float(reward)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
