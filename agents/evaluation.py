"""Evaluates a policy's texts: their reward, and measures that suffer when a reward is hacked."""

from __future__ import annotations

import codecs
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from agents import distributed
from agents.frontier import Frontier
from agents.gpt2 import GPT2
from agents.metrics import standard_error
from agents.policy import GPT2Policy
from agents.rollout import collect_episodes, numbers, scores_of, seeded
from agents.sb3_vec_env import wrap_token_env
from text_sentiment_env import SentimentModel, Vocabulary


def evaluate(
    policy: GPT2Policy,
    reference: GPT2,
    env: GymEnv | VectorEnv,
    n_episodes: int = 256,
    seed: int = 0,
    judges: Mapping[str, SentimentModel] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    frontier: Frontier | None = None,
    kl_coef: float = 0.0,
) -> dict[str, Any]:
    """Writes fresh texts and measures them; the caller's random numbers are left as they were.

    Rewards are the environment's own, also behind a `VecNormalize`, which learns nothing from them.

    Several ranks must all call this. The first evaluates, with the whole model; the others wait.

    Args:
        policy: writes the texts, by sampling.
        reference: the start model, of the same vocabulary.
        env: of Gymnasium or stable-baselines3; its rows are played. Texts are rounded up to whole batches,
            then cut to `n_episodes`.
        n_episodes: texts to write.
        seed: of the environment's rows and torch's generator.
        judges: other sentiment models by name. A judge that training did not use tells whether the
            reward was hacked.
        progress: called after every batch with the texts written and `n_episodes`.
        frontier: of the start model's texts in the same environment, to compare with.
        kl_coef: the β that the policy was trained with.

    Returns:
        Means over the texts: `reward`, with `reward_standard_error`; every number of the last step's
        info (`sentiment`, `length`, `length_penalty`…); `end_rate`, the share of texts ended by
        `<|endoftext|>`; `entropy` of the policy (nats per token); `kl` to the reference (nats per text), of
        whole next-token distributions, which has less noise than that of the tokens drawn;
        `perplexity` of the texts under the reference (a token); `distinct_1` and `distinct_2`, distinct
        among all uni- and bigrams (Li et al. 2016); `distinct_texts`; each of `judges`. With
        `frontier` also the `win_rate` over the start model's texts and, for a `kl_coef` above 0, the
        `gap` to the optimum at it (nats per text), with `gap_standard_error`, unless the start model's
        texts are too few for it (`Frontier.supports`). And `samples`, of every
        text its `prompt`, `text`, `tokens` (list of str, those written), `reward`, `kl`, the info's
        numbers and the score of each of `judges`. On the other ranks nothing.

    Raises:
        ValueError: for no episodes, and for a judge with the name of another measure.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes={n_episodes} must be at least 1: a mean needs a text")
    env = wrap_token_env(env)
    policy.set_training_mode(False)
    with (
        distributed.summon_full_params(policy),
        distributed.summon_full_params(reference),
        torch.no_grad(),
    ):
        result: dict[str, Any] = {}
        try:
            if distributed.rank() == 0:
                with seeded(env, seed, policy.device):
                    result = _evaluate(policy, reference, env, n_episodes, judges or {}, progress)
        finally:  # also if it fails: the others wait
            distributed.wait()
    if frontier is not None and result:
        rewards, kls = zip(*[(s["reward"], s["kl"]) for s in result["samples"]], strict=True)
        result["win_rate"] = frontier.win_rate(rewards).value
        if kl_coef and frontier.supports(kl_coef):
            gap = frontier.gap(rewards, kls, kl_coef)
            result["gap"], result["gap_standard_error"] = gap
    return result


def _evaluate(
    policy: GPT2Policy,
    reference: GPT2,
    env: VecEnv,
    n_episodes: int,
    judges: Mapping[str, SentimentModel],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    rewards: list[float] = []
    infos: list[dict[str, Any]] = []
    prompts: list[str] = []
    generated: list[list[int]] = []
    vocabulary = env.get_attr("vocabulary")[0]
    kls: list[float] = []
    entropy = reference_log_prob = 0.0
    while len(rewards) < n_episodes:
        batch = collect_episodes(policy, env)
        assert batch is not None
        keep = slice(0, n_episodes - len(rewards))
        texts, mask = batch.texts[keep], batch.mask[keep].cpu()
        scores = policy.evaluate_texts(texts, mask, start=reference)
        summed = [x.double().sum() for x in (scores.entropy, scores.start_log_prob)]
        more_entropy, more_log_prob = torch.stack(summed).tolist()  # one read of a GPU
        entropy, reference_log_prob = entropy + more_entropy, reference_log_prob + more_log_prob
        kls += scores.kl.double().sum(1).tolist()
        rewards += batch.returns[keep].tolist()
        infos += batch.infos[keep]
        for text, written in zip(texts.tolist(), mask.tolist(), strict=True):
            prompts.append(vocabulary.decode(text[: written.index(True)]))
            generated.append(list(itertools.compress(text, written)))
        progress(len(rewards), n_episodes)
    n, tokens = len(rewards), sum(map(len, generated))
    end = policy.end_index
    words = [tokens[:-1] if tokens[-1] == end else tokens for tokens in generated]
    result: dict[str, Any] = {
        "episodes": n,
        "reward": float(np.mean(rewards)),
        "reward_standard_error": standard_error(rewards),
        "end_rate": float(np.mean([tokens[-1] == end for tokens in generated])),
        "entropy": entropy / tokens,
        "kl": float(np.mean(kls)),
        "perplexity": math.exp(-reference_log_prob / tokens),
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "distinct_texts": len({info["text"] for info in infos}) / n,
    }
    measures = _numbers(infos, judges)
    result |= {name: float(np.mean(values)) for name, values in measures.items()}
    columns: dict[str, Sequence[Any]] = {
        "prompt": prompts,
        "text": [info["text"] for info in infos],
        "tokens": [_pieces(vocabulary, tokens) for tokens in generated],
        "reward": rewards,
        "kl": kls,
        **measures,
    }
    rows = zip(*columns.values(), strict=True)
    result["samples"] = [dict(zip(columns, row, strict=True)) for row in rows]
    return result


def _numbers(
    infos: Sequence[Mapping[str, Any]], judges: Mapping[str, SentimentModel]
) -> dict[str, list[float]]:
    """Every number of the last steps' infos, and the scores of other judges, text by text."""
    texts = [info["text"] for info in infos]
    columns: dict[str, npt.ArrayLike] = {
        name: [info[name] for info in infos] for name in numbers(infos)
    }
    columns |= scores_of(judges, texts, columns)
    return {name: np.asarray(column).tolist() for name, column in columns.items()}


def _pieces(vocabulary: Vocabulary, tokens: list[int]) -> list[str]:
    """What each token adds to the text; a character that several tokens spell is the last one's."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    spelled = [vocabulary.token_bytes[token] for token in tokens if token != vocabulary.end_index]
    last = len(spelled) - 1
    return [decoder.decode(piece, final=i == last) for i, piece in enumerate(spelled)]


def _distinct(texts: list[list[int]], n: int) -> float:
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
