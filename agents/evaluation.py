"""How good a policy's texts are: the reward, beside what the hacking of a reward would spoil."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.frontier import Frontier
from agents.gpt2 import GPT2
from agents.policy import GPT2Policy
from agents.rollout import collect
from text_sentiment_env import SentimentModel


def evaluate(
    policy: GPT2Policy,
    reference: GPT2,
    env: VecEnv,
    n_episodes: int = 256,
    seed: int = 0,
    judges: Mapping[str, SentimentModel] | None = None,
    frontier: Frontier | None = None,
    kl_coef: float = 0.0,
) -> dict[str, Any]:
    """Writes fresh texts and measures them; the caller's random numbers are left as they were.

    Args:
        policy: what writes, by drawing tokens.
        reference: the start model, of the same vocabulary.
        env: whose rows are played; rounded up to whole batches, then cut to `n_episodes`.
        n_episodes: texts to write.
        seed: of the environment's rows and torch's generator.
        judges: other sentiment models by name; what training didn't see tells whether it was hacked.
        frontier: of the start model's texts in the same environment, to compare with.
        kl_coef: the β that the policy was trained with.

    Returns:
        Means over the texts: `reward`, with `reward_standard_error`; every number of the last step's
        info (`sentiment`, `length`, `length_penalty`…); `end_rate`, the share of texts ended by
        `<|endoftext|>`; `entropy` of the policy (nats a token); `kl` to the reference (nats a text);
        `perplexity` of the texts under the reference (a token); `distinct_1` and `distinct_2`, distinct
        among all uni- and bigrams (Li et al. 2016); `distinct_texts`; each of `judges`; with
        `frontier`, the `win_rate` over the start model's texts and, for a `kl_coef` above 0, the
        `gap` to the optimum at it (nats a text), with `gap_standard_error`. And `samples`: `text`,
        `reward`, `sentiment` and `kl` of every text.
    """
    policy.set_training_mode(False)
    rewards: list[float] = []
    infos: list[dict[str, Any]] = []
    generated: list[list[int]] = []
    kls: list[float] = []
    sums = {"entropy": 0.0, "reference": 0.0}
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        env.seed(seed)
        while len(rewards) < n_episodes:
            batch = collect(policy, env)
            assert batch is not None
            keep = slice(0, n_episodes - len(rewards))
            texts, mask = batch.rows(keep)
            now = policy.read_texts(texts, mask)
            now = policy.gpt2.head(now).log_softmax(-1)  # (N, V)
            start = reference.head(policy.read_texts(texts, mask, reference)).log_softmax(-1)
            p = now.exp()
            sums["entropy"] -= (p * now).sum().item()
            # Over all next tokens, not only the one drawn: the same mean, less noise, never below 0.
            kl = (p * (now - start)).sum(-1)  # (N,)
            padded = torch.zeros(mask.shape, dtype=kl.dtype, device=kl.device)
            kls += padded.masked_scatter(mask, kl).sum(1).tolist()
            sums["reference"] += start.gather(1, texts[mask][:, None]).sum().item()
            rewards += batch.rewards[keep].sum(1).tolist()
            infos += batch.infos[keep]
            generated += [t[m].tolist() for t, m in zip(texts, mask, strict=True)]
    n, tokens = len(rewards), sum(map(len, generated))
    end = policy.config.vocab_size - 1
    words = [tokens[:-1] if tokens[-1] == end else tokens for tokens in generated]
    result: dict[str, Any] = {
        "episodes": n,
        "reward": float(np.mean(rewards)),
        "reward_standard_error": float(np.std(rewards, ddof=1) / math.sqrt(n)) if n > 1 else 0.0,
        "end_rate": float(np.mean([tokens[-1] == end for tokens in generated])),
        "entropy": sums["entropy"] / tokens,
        "kl": float(np.mean(kls)),
        "perplexity": math.exp(-sums["reference"] / tokens),
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "distinct_texts": len({info["text"] for info in infos}) / n,
    }
    for name, value in infos[0].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            result[name] = float(np.mean([info[name] for info in infos]))
    for name, judge in (judges or {}).items():
        result[name] = float(np.mean(np.asarray(judge([info["text"] for info in infos]))))
    if frontier is not None:
        result["win_rate"] = frontier.win_rate(rewards).value
        if kl_coef:
            gap = frontier.gap(rewards, kls, kl_coef)
            result["gap"], result["gap_standard_error"] = gap
    result["samples"] = [
        {"text": info["text"], "reward": reward, "sentiment": info["sentiment"], "kl": kl}
        for info, reward, kl in zip(infos, rewards, kls, strict=True)
    ]
    return result


def _distinct(texts: list[list[int]], n: int) -> float:
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
