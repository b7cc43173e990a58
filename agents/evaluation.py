"""How good a policy's texts are: the reward, beside what the hacking of a reward would spoil."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents import distributed
from agents.gpt2 import GPT2
from agents.policy import GPT2Policy, masked_places
from agents.rollout import collect_episodes
from agents.sampling import at_least_float32
from text_sentiment_env import SentimentModel

ROWS = 1024  # of logits (rows, V) that exist at a time


def evaluate(
    policy: GPT2Policy,
    reference: GPT2,
    env: VecEnv,
    n_episodes: int = 256,
    seed: int = 0,
    judges: Mapping[str, SentimentModel] | None = None,
) -> dict[str, Any]:
    """Writes fresh texts and measures them; the caller's random numbers are left as they were.

    Several ranks must all call this. The first evaluates, with the whole model; the others wait.

    Args:
        policy: writes the texts, by sampling.
        reference: the start model, of the same vocabulary.
        env: its rows are played; texts are rounded up to whole batches, then cut to `n_episodes`.
        n_episodes: texts to write.
        seed: of the environment's rows and torch's generator.
        judges: other sentiment models by name. A judge that training did not use tells whether the
            reward was hacked.

    Returns:
        Means over the texts: `reward`, with `reward_standard_error`; every number of the last step's
        info (`sentiment`, `length`, `length_penalty`…); `end_rate`, the share of texts ended by
        `<|endoftext|>`; `entropy` of the policy (nats a token); `kl` to the reference (nats a text);
        `perplexity` of the texts under the reference (a token); `distinct_1` and `distinct_2`, distinct
        among all uni- and bigrams (Li et al. 2016); `distinct_texts`; each of `judges`. And
        `samples`: `text`, `prompt`, `reward` and `sentiment` of every text. On the other ranks
        nothing.
    """
    policy.set_training_mode(False)
    devices = [policy.device] if policy.device.type == "cuda" else []
    with (
        distributed.summon_full_params(policy),
        distributed.summon_full_params(reference),
        torch.random.fork_rng(devices),
        torch.no_grad(),
    ):
        result: dict[str, Any] = {}
        try:
            if distributed.rank() == 0:
                torch.manual_seed(seed)
                env.seed(seed)
                result = _evaluate(policy, reference, env, n_episodes, judges or {})
        finally:  # also if it fails: the others wait
            distributed.wait()
    return result


def _evaluate(
    policy: GPT2Policy,
    reference: GPT2,
    env: VecEnv,
    n_episodes: int,
    judges: Mapping[str, SentimentModel],
) -> dict[str, Any]:
    rewards: list[float] = []
    infos: list[dict[str, Any]] = []
    prompts: list[str] = []
    generated: list[list[int]] = []
    vocabulary = env.get_attr("vocabulary")[0]
    sums = torch.zeros(3, dtype=torch.float64)
    while len(rewards) < n_episodes:
        batch = collect_episodes(policy, env)
        assert batch is not None
        keep = slice(0, n_episodes - len(rewards))
        texts, mask = batch.rows(keep)
        sums += _token_sums(policy, reference, texts, mask)
        rewards += batch.rewards[keep].sum(1).tolist()
        infos += batch.infos[keep]
        for text, written in zip(texts.tolist(), mask.tolist(), strict=True):
            prompts.append(vocabulary.decode(text[: written.index(True)]))
            generated.append(list(itertools.compress(text, written)))
    n, tokens = len(rewards), sum(map(len, generated))
    entropy, kl, reference_log_prob = sums.tolist()
    end = policy.end_index
    words = [tokens[:-1] if tokens[-1] == end else tokens for tokens in generated]
    result: dict[str, Any] = {
        "episodes": n,
        "reward": float(np.mean(rewards)),
        "reward_standard_error": float(np.std(rewards, ddof=1) / math.sqrt(n)) if n > 1 else 0.0,
        "end_rate": float(np.mean([tokens[-1] == end for tokens in generated])),
        "entropy": entropy / tokens,
        "kl": kl / n,
        "perplexity": math.exp(-reference_log_prob / tokens),
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "distinct_texts": len({info["text"] for info in infos}) / n,
    }
    for name, value in infos[0].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            result[name] = float(np.mean([info[name] for info in infos]))
    for name, judge in judges.items():
        result[name] = float(np.mean(np.asarray(judge([info["text"] for info in infos]))))
    result["samples"] = [
        {"text": info["text"], "prompt": prompt, "reward": reward, "sentiment": info["sentiment"]}
        for info, prompt, reward in zip(infos, prompts, rewards, strict=True)
    ]
    return result


def _token_sums(policy: GPT2Policy, reference: GPT2, texts: Tensor, mask: Tensor) -> Tensor:
    """Sums over the written tokens: entropy, KL to the reference, reference log-probability.

    The KL is that of each next-token distribution, not only of the token drawn: the same mean with
    less noise, and never below 0.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=texts.device)
    mask = mask.cpu()  # once: each value read makes the host wait for a GPU
    rows, columns, _ = masked_places(mask, texts.device)
    tokens = texts[rows, columns].long()
    current = policy.hidden_states(texts, mask)
    start = policy.hidden_states(texts, mask, reference)
    for first in range(0, len(tokens), ROWS):
        chunk = slice(first, first + ROWS)
        with policy.autocast():  # as in sampling: other logits would be another distribution's
            logits, start_logits = policy.gpt2.head(current[chunk]), reference.head(start[chunk])
        log_p = at_least_float32(logits).log_softmax(-1)  # (rows, V)
        log_q = at_least_float32(start_logits).log_softmax(-1)
        p = log_p.exp()
        sums[0] -= (p * log_p).sum()
        sums[1] += p.mul_(log_p.sub_(log_q)).sum()
        sums[2] += log_q.gather(1, tokens[chunk, None]).sum()
    return sums.cpu()


def _distinct(texts: list[list[int]], n: int) -> float:
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
