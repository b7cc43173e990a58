"""Which agent learns best? The same environment and number of tokens for all, several seeds each.

    python examples/compare_agents.py --out runs/compare                    # all agents, 5 seeds
    python examples/compare_agents.py --agents ppo-mlp dqn --seeds 3 --tokens 20000 --out runs/few
    python examples/compare_agents.py --pretrained reviews --out runs/compare-pretrained

Every agent begins with fresh weights of about 100,000 parameters. With --pretrained the GPT-2 agents start
from that model, and the others are left out. After training each writes fresh texts, as it writes in
training (DQN: greedily).

Writes to --out: a JSON file a run, results.json, results.md, learning_curves.png. Finished runs are kept, so
that the same command goes on where it was stopped. A run counts as failed when it ended with an exception or
a mean reward that is not finite or below --failed-below; it is reported, and what it got stays in the mean.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import text_sentiment_env
from agents import GPT2, REINFORCE, GPT2Policy, SB3VecEnv, TokenEmbedding, cli
from agents.advantages import BASELINES
from agents.atomic import atomic_write
from agents.metrics import standard_error

BINS = 40  # points of a learning curve
ROWS = 16

MLP: dict[str, Any] = {
    "policy": "MlpPolicy",
    "policy_kwargs": {"features_extractor_class": TokenEmbedding, "net_arch": [128, 128]},
}
# The entropy bonus is smaller where advantages are not scaled to deviation 1.
A2C_ARGUMENTS: dict[str, Any] = {"n_steps": 20, "gamma": 1.0, "ent_coef": 0.001}
PPO_ARGUMENTS: dict[str, Any] = {
    **{"n_steps": 128, "batch_size": 256, "n_epochs": 4, "gamma": 1.0, "ent_coef": 0.01},
}
REINFORCE_ARGUMENTS: dict[str, Any] = {
    **{"policy": GPT2Policy, "ent_coef": 0.001, "learning_rate": 2e-3, "lr_decay": "linear"},
}


def maskable_ppo(**arguments: Any) -> Any:
    """sb3_contrib's MaskablePPO; imported when used, so that --help works without the package."""
    from sb3_contrib import MaskablePPO

    return MaskablePPO(**arguments)


# Algorithm and arguments; nothing here differs between seeds.
AGENTS: dict[str, tuple[Callable[..., Any] | None, dict[str, Any]]] = {
    "random": (None, {}),
    **{f"reinforce-{b}": (REINFORCE, REINFORCE_ARGUMENTS | {"baseline": b}) for b in BASELINES},
    "a2c-mlp": (A2C, A2C_ARGUMENTS | MLP | {"learning_rate": 1e-3}),
    "a2c-gpt2": (A2C, A2C_ARGUMENTS | {"policy": GPT2Policy, "learning_rate": 1e-3}),
    "ppo-mlp": (PPO, PPO_ARGUMENTS | MLP | {"learning_rate": 1e-3}),
    "ppo-gpt2": (PPO, PPO_ARGUMENTS | {"policy": GPT2Policy, "learning_rate": 1e-3}),
    "maskable-ppo": (maskable_ppo, PPO_ARGUMENTS | MLP | {"learning_rate": 1e-3}),
    "dqn": (
        DQN,
        MLP
        | {"learning_rate": 1e-3, "gamma": 1.0, "train_freq": 4, "gradient_steps": 16}
        | {"learning_starts": 2_000, "target_update_interval": 1_000, "batch_size": 64},
    ),
}
# Without prompts "mean" and "rloo" over all rows are one and the same, so rloo compares groups of 4.
AGENTS["reinforce-rloo"][1]["group_size"] = 4
GPT2_AGENTS = [name for name, (_, a) in AGENTS.items() if a.get("policy") is GPT2Policy]


AgentName = Literal[
    "random",
    "reinforce-none",
    "reinforce-mean",
    "reinforce-ema",
    "reinforce-rloo",
    "reinforce-value",
    "a2c-mlp",
    "a2c-gpt2",
    "ppo-mlp",
    "ppo-gpt2",
    "maskable-ppo",
    "dqn",
]


@dataclass
class Args:
    """All flags."""

    out: Path = Path("runs/compare")
    """folder to write to"""
    agents: tuple[AgentName, ...] = ()
    """agents to compare; default: all"""
    seeds: int = 5
    """runs of each agent, with seeds 0, 1, ..."""
    tokens: int = 50_000
    """tokens that each run may write"""
    eval_episodes: int = 200
    """texts judged after training"""
    failed_below: float = 0.5
    """mean reward below which a run has failed"""
    processes: int = os.cpu_count() or 1
    """runs at a time, a thread each"""
    sentiment_model: str = "bundled"
    """the judge"""
    pretrained: str | None = None
    """start GPT-2s from: reviews, or a directory"""
    learning_rate: float | None = None
    """learning rate of all agents, instead of each one's own"""


def parse_arguments(argv: Sequence[str] | None = None) -> Args:
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "seeds", "tokens", "eval_episodes", "processes")
    known = ["random", *GPT2_AGENTS] if args.pretrained else list(AGENTS)
    if not set(args.agents) <= set(known):
        raise ValueError(f"--pretrained is for GPT-2s: choose --agents of {', '.join(known)}")
    return args if args.agents else replace(args, agents=tuple(known))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- one run


class RandomAgent:
    """Draws every token evenly."""

    def __init__(self, env: VecEnv, seed: int) -> None:
        self.env, self.num_timesteps = env, 0
        env.action_space.seed(seed)

    def learn(self, tokens: int) -> None:
        """Writes, and learns nothing."""
        self.env.reset()
        while self.num_timesteps < tokens:
            self.env.step(self.predict(np.zeros(self.env.num_envs))[0])
            self.num_timesteps += self.env.num_envs

    def predict(self, obs: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        """An action a row, and no state."""
        return np.array([self.env.action_space.sample() for _ in obs]), None


def make_env(settings: dict[str, Any], rows: int, log: str | None = None) -> VecMonitor:
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=rows,
        sentiment_model=settings["sentiment_model"],
        autoreset_mode="SameStep",
    )
    return VecMonitor(SB3VecEnv(envs), log)


def make_agent(name: str, env: VecEnv, seed: int, settings: dict[str, Any]) -> Any:
    algorithm, arguments = AGENTS[name]
    if algorithm is None:
        return RandomAgent(env, seed)
    arguments = arguments | {"env": env, "seed": seed, "device": "cpu"}
    if settings["learning_rate"] is not None:
        arguments["learning_rate"] = settings["learning_rate"]
    start = settings["pretrained"]
    if name in GPT2_AGENTS and not start:
        # The judge pays nothing for long random texts, and a policy gradient learns from pay alone.
        arguments["policy_kwargs"] = {"initial_length": 2}
    if start and algorithm is REINFORCE:
        return REINFORCE(pretrained=start, **arguments)
    if start:
        # policy_kwargs hold sizes only; the weights are loaded into the finished policy.
        gpt2 = GPT2.from_pretrained(start)
        gpt2 = gpt2.restrict(env.get_attr("vocabulary")[0].token_ids.tolist())
        agent = algorithm(policy_kwargs={"config": gpt2.config.to_dict()}, **arguments)
        agent.policy.gpt2.load_state_dict(gpt2.state_dict())
        return agent
    return algorithm(**arguments)


def learning_curve(log: Path, tokens: int) -> list[float | None]:
    """Mean reward of the texts that ended in each of BINS equal parts of the budget."""
    rows = log.read_text("utf-8").splitlines()[2:]
    if not rows:
        return [None] * BINS
    rewards, lengths = np.loadtxt(rows, delimiter=",", usecols=(0, 1), ndmin=2).T
    bins = ((lengths.cumsum() - 1) * BINS // tokens).astype(int)
    means = [rewards[bins == i].mean() if (bins == i).any() else None for i in range(BINS)]
    return [None if mean is None else float(mean) for mean in means]


def run(name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Trains and evaluates one agent; an exception becomes part of the result."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"agent": name, "seed": seed, "reward": None, "error": None}
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            env = make_env(settings, ROWS, f"{folder}/log")
            agent = make_agent(name, env, seed, settings)
            if hasattr(agent, "policy"):
                result["parameters"] = sum(p.numel() for p in agent.policy.parameters())
            began, worked = time.perf_counter(), time.process_time()
            agent.learn(settings["tokens"])
            result["seconds"] = time.perf_counter() - began
            result["cpu_seconds"] = time.process_time() - worked
            result["tokens"] = agent.num_timesteps
            env.close()
            result["curve"] = learning_curve(Path(folder, "log.monitor.csv"), settings["tokens"])
        result |= evaluate(agent, settings, seed, greedy=name == "dqn")
    except Exception:  # a failed run is a result
        result["seconds"] = time.perf_counter() - began
        result["error"] = traceback.format_exc()
    return result


def evaluate(agent: Any, settings: dict[str, Any], seed: int, greedy: bool) -> dict[str, Any]:
    env = make_env(settings, min(50, settings["eval_episodes"]))
    env.seed(1_000_000 + 1_000 * seed)
    infos: list[dict[str, Any]] = []

    def keep(scope: dict[str, Any], _: dict[str, Any]) -> None:
        if scope["done"]:
            infos.append(scope["info"])

    rewards, _ = evaluate_policy(
        agent,
        env,
        settings["eval_episodes"],
        deterministic=greedy,
        callback=keep,
        return_episode_rewards=True,
    )
    texts = [info["text"] for info in infos]
    return {
        "reward": float(np.mean(rewards)),
        "sentiment": float(np.mean([info["sentiment"] for info in infos])),
        "length": float(np.mean([info["length"] for info in infos])),
        "distinct_texts": len(set(texts)) / len(texts),
        "samples": texts[:5],
    }


# ---------------------------------------------------------------------------------------- all runs


def run_all(args: Args, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Every agent with every seed; those that are finished are read from --out."""
    args.out.mkdir(parents=True, exist_ok=True)
    stored = args.out / "settings.json"
    if stored.exists() and json.loads(stored.read_text("utf-8")) != settings:
        raise ValueError(
            f"--out {args.out} holds runs of other settings, {stored.read_text('utf-8')}:"
            " choose another folder"
        )
    write(stored, json.dumps(settings))
    # By seed, so that a comparison that is stopped early has all agents.
    wanted = [(name, seed) for seed in range(args.seeds) for name in args.agents]
    paths = {key: args.out / f"{key[0]}-seed{key[1]}.json" for key in wanted}
    missing = [key for key in wanted if not paths[key].exists()]
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        futures = {pool.submit(run, *key, settings): key for key in missing}
        try:
            for i, future in enumerate(as_completed(futures), 1):
                result = future.result()
                path = paths[futures[future]]
                write(path, json.dumps(result))
                outcome = f"{result['reward']:+.3f}" if result["error"] is None else result["error"]
                print(
                    f"{i}/{len(missing)} {path.stem}: {outcome}, {result['seconds']:.0f} s",
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("stopped; the same command goes on from here")
            raise
    return [json.loads(path.read_text("utf-8")) for path in paths.values()]


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def failed(result: dict[str, Any], threshold: float) -> bool:
    reward = result["reward"]
    return reward is None or not np.isfinite(reward) or reward < threshold


def summarise(runs: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """A row an agent, the best first."""
    rows = []
    for name in dict.fromkeys(result["agent"] for result in runs):
        mine = [result for result in runs if result["agent"] == name]
        done = [r for r in mine if r["reward"] is not None and np.isfinite(r["reward"])]
        row: dict[str, Any] = {
            "agent": name,
            "seeds": len(mine),
            "failed": sum(failed(result, threshold) for result in mine),
            "without_reward": len(mine) - len(done),
        }
        for key in ("reward", "sentiment", "length", "distinct_texts"):
            values = [result[key] for result in done]
            row[key] = float(np.mean(values)) if values else None
        if len(done) > 1:
            row["standard_error"] = standard_error([result["reward"] for result in done])
        row["parameters"] = mine[0].get("parameters", 0)
        row["seconds"] = float(np.mean([result["seconds"] for result in mine]))
        # Per second of the processor: what else the machine did meanwhile doesn't count.
        speeds = [result["tokens"] / result["cpu_seconds"] for result in done]
        row["tokens_per_cpu_second"] = float(np.mean(speeds)) if speeds else None
        rows.append(row)
    return sorted(rows, key=lambda row: -np.inf if row["reward"] is None else -row["reward"])


def table(rows: list[dict[str, Any]], settings: dict[str, Any], args: Args) -> str:
    """The outcome in Markdown."""
    lines = [
        "| agent | mean reward | failed seeds | sentiment | length | distinct texts | seconds | tokens / CPU second | parameters |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["reward"] is None:
            reward, measures = "none", ["", "", ""]
        else:
            error = f" ± {row['standard_error']:.3f}" if "standard_error" in row else ""
            reward = f"{row['reward']:+.3f}{error}"
            measures = [f"{row['sentiment']:+.2f}", f"{row['length']:.1f}"]
            measures.append(f"{row['distinct_texts']:.0%}")
        lost = f" ({row['without_reward']} without a reward)" if row["without_reward"] else ""
        speed = f"{row['tokens_per_cpu_second']:,.0f}" if row["tokens_per_cpu_second"] else ""
        cells = [row["agent"], reward, f"{row['failed']} of {row['seeds']}{lost}", *measures]
        cells += [f"{row['seconds']:.0f}", speed, f"{row['parameters']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    start = f"GPT-2s from {settings['pretrained']!r}" if settings["pretrained"] else "fresh weights"
    lines += [
        "",
        f"Judge {settings['sentiment_model']!r}, {start}, {settings['tokens']:,} tokens a run,"
        f" {settings['eval_episodes']} fresh texts each after training. Mean ± standard error over"
        f" seeds; failed: below {args.failed_below}. {args.processes} runs at a time, each on one"
        f" thread of {platform.machine()}.",
    ]
    return "\n".join(lines) + "\n"


def plot(runs: list[dict[str, Any]], rows: list[dict[str, Any]], tokens: int, path: Path) -> None:
    """Learning curves: mean over seeds, with a band of ± one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 6), layout="constrained")
    x = (np.arange(BINS) + 0.5) * tokens / BINS
    for i, name in enumerate(row["agent"] for row in rows):
        curves = [r["curve"] for r in runs if r["agent"] == name and "curve" in r]
        if not curves:
            continue
        data = np.ma.masked_invalid(np.array(curves, float))  # (seeds, BINS), None: no text ended
        mean = data.mean(0)
        error = data.std(0, ddof=1 if len(curves) > 1 else 0) / np.sqrt(data.count(0).clip(1))
        style = "-" if i < 10 else "--"
        [line] = axis.plot(x, mean, style, color=f"C{i % 10}", lw=1.4, label=name)
        axis.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.15, lw=0)
    axis.set_xlabel("tokens written")
    axis.set_ylabel("reward of a text")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    args = parse_arguments(argv)
    names = ("tokens", "eval_episodes", "sentiment_model", "pretrained", "learning_rate")
    settings = {name: getattr(args, name) for name in names}
    runs = run_all(args, settings)
    rows = summarise(runs, args.failed_below)
    versions = {m.__name__: m.__version__ for m in (text_sentiment_env, torch, gym, sb3)}
    if "maskable-ppo" in args.agents:
        versions["sb3_contrib"] = version("sb3-contrib")
    results = {"settings": settings, "versions": versions, "table": rows, "runs": runs}
    write(args.out / "results.json", json.dumps(results, indent=1))
    markdown = table(rows, settings, args)
    write(args.out / "results.md", markdown)
    plot(runs, rows, args.tokens, args.out / "learning_curves.png")
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
