"""How much reward a KL budget can buy, estimated from texts of the start model alone.

REINFORCE with a KL penalty maximises J(π) = E_π[r] - β·KL(π, π₀). Its optimum is known in closed form
(Ziegler et al. 2019, Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian inference"):

    π*(x) = π₀(x) exp(r(x)/β) / Z,    Z = E₀[exp(r/β)],    J* = J(π*) = β log Z,

and for every policy (J* - J(π))/β = KL(π, π*): the gap to the optimum, in nats per text. All of it is an
average over π₀, so a few thousand of the start model's texts and their rewards are enough. Best-of-n
sampling, which takes the best of n such texts, is measured from the same texts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.atomic import atomic_write
from agents.metrics import standard_error
from agents.policy import GPT2Policy
from agents.rollout import Episodes, collect_episodes, numbers, prompts_of, scores_of, seeded
from text_sentiment_env import SentimentModel

Floats = npt.NDArray[np.float64]
START_TEXTS = "start_texts.npz"  # the cache of a training run, in its folder
KL_COEFS = tuple(np.geomspace(30.0, 0.01, 50).tolist())  # at which a curve of optima is drawn
FEWEST_SAMPLES = 50  # effective samples of a point that is drawn, or that a gap is measured to


class Estimate(NamedTuple):
    """A mean over samples, and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Point:
    """A policy made from the start model's texts without training.

    Attributes:
        kl: KL to the start model, in nats per text; for best-of-n its upper bound.
        effective_samples: the number of unweighted texts with as much information, (Σw)²/Σw² for
            weights w (Kish 1965). The other numbers are rough below a hundred, and not drawn below
            FEWEST_SAMPLES.
        means: of the reward and of every other measure; with the start model's `log_prob` and the
            `tokens` of each text also the `perplexity` under it, a token.
    """

    kl: float
    effective_samples: float
    means: dict[str, float]


class Frontier:
    """The best trade-offs of reward and KL that any policy can reach, from N start-model texts.

    >>> frontier = Frontier([0.0, 0.0, 1.0, 1.0])
    >>> point = frontier.optimum(kl_coef=0.1)
    >>> round(point.means["reward"], 3), round(point.kl, 3)  # only the better half, at log 2 nats
    (1.0, 0.693)
    >>> gap = frontier.gap(rewards=[0.0, 1.0], kls=[0.0, 0.0], kl_coef=0.5)
    >>> round(gap.value, 3)
    0.434
    """

    def __init__(self, rewards: npt.ArrayLike, measures: Mapping[str, npt.ArrayLike] | None = None):
        """Keeps the texts' rewards.

        Args:
            rewards: of N texts that the start model wrote, (N,).
            measures: other numbers of the same texts by name, each (N,): sentiment, length…

        Raises:
            ValueError: for no rewards, other shapes, or numbers that are not finite.
        """
        columns = {"reward": rewards, **(measures or {})}
        self.columns = {name: np.asarray(x, np.float64) for name, x in columns.items()}
        self.rewards = self.columns["reward"]
        for name, column in self.columns.items():
            if column.shape != (self.rewards.size,) or not column.size:
                raise ValueError(
                    f"{name} has shape {column.shape}: it must be (N,), a number for each of the"
                    f" {self.rewards.size} texts, and N at least 1"
                )
            if not np.isfinite(column).all():
                raise ValueError(f"{name} holds NaN or infinity: each text needs a number")
        self._sorted = np.sort(self.rewards)

    def __len__(self) -> int:
        return len(self.rewards)

    def optimum(self, kl_coef: float) -> Point:
        """The policy π* that maximises E[r] - β·KL for β = `kl_coef`: texts weighted with exp(r/β)."""
        p = self._shares(kl_coef)
        written = p[p > 0]
        # KL(π*, π₀) = E*[log(π*/π₀)], and a text's π*/π₀ is N times its share of the weights.
        kl = float(written @ np.log(len(self) * written))
        return self._point(p, kl)

    def distinct_texts(self, kl_coef: float, n: int) -> float:
        """The share of different texts that is expected among n of π*.

        It is Σ_x (1 - (1 - π*(x))^n) / n, because 1 - (1 - q)^n is how likely a text of probability
        q is written at all. π*(x) is π₀(x), which the measure `log_prob` of the texts tells, times the
        text's weight.

        Raises:
            KeyError: without the measure `log_prob`.
        """
        p = self._shares(kl_coef)
        p, log_prob = p[p > 0], self.columns["log_prob"][p > 0]
        # Not 0, as which a long text's may come out.
        probability = (np.exp(log_prob) * len(self) * p).clip(np.finfo(float).tiny, 1.0)
        with np.errstate(divide="ignore"):  # a probability of 1 is written for certain
            missed = n * np.log1p(-probability)
        return float(p @ (-np.expm1(missed) / probability)) / n

    def supports(self, kl_coef: float) -> bool:
        """Whether the texts are enough for the optimum and the gap at this KL weight.

        With fewer effective samples than FEWEST_SAMPLES J* comes out too low, and so does its standard
        error: a gap could be negative.
        """
        return self.optimum(kl_coef).effective_samples >= FEWEST_SAMPLES

    def optima(self, kl_coefs: Iterable[float] = KL_COEFS) -> dict[float, Point]:
        """The optimum at each KL weight that the texts are enough for, as a curve to draw."""
        points = {kl_coef: self.optimum(kl_coef) for kl_coef in kl_coefs}
        return {k: p for k, p in points.items() if p.effective_samples >= FEWEST_SAMPLES}

    def best_of(self, n: int) -> Point:
        """The policy that writes n texts and keeps the best, ties broken by chance.

        The share of the text of rank i (1 the worst) is that of the n-subsets of the N texts in which
        it is the best, C(i-1, n-1) / C(N, n). Its KL is at most log n - (n-1)/n (Beirami et al. 2024,
        "Theoretical guarantees on the best-of-n alignment policy"), with equality without ties.

        Raises:
            ValueError: if n is not between 1 and N.
        """
        N = len(self)
        if not 1 <= n <= N:
            raise ValueError(f"n={n} must lie between 1 and the {N} texts of the start model")
        log_factorial = np.cumsum(np.log(np.maximum(np.arange(N + 1), 1)))  # of 0 … N
        rank = np.arange(n, N + 1)
        log_share = (log_factorial[rank - 1] - log_factorial[rank - n] - log_factorial[n - 1]) - (
            log_factorial[N] - log_factorial[n] - log_factorial[N - n]
        )
        share = np.zeros(N)
        share[n - 1 :] = np.exp(log_share)
        _, which, count = np.unique(self.rewards, return_inverse=True, return_counts=True)
        ends = np.cumsum(count)
        cumulative = np.concatenate([[0.0], np.cumsum(share)])
        tied = cumulative[ends] - cumulative[ends - count]  # of all texts with the same reward
        return self._point((tied / count)[which], math.log(n) - (n - 1) / n)

    def value(self, kl_coef: float) -> Estimate:
        """J* = β log E₀[exp(r/β)], with the standard error of the sample mean (delta method)."""
        weights = self._weights(kl_coef)
        mean = weights.mean()
        value = self._sorted[-1] + kl_coef * math.log(mean)
        return Estimate(float(value), kl_coef * standard_error(weights / mean))

    def gap(self, rewards: npt.ArrayLike, kls: npt.ArrayLike, kl_coef: float) -> Estimate:
        """KL(π, π*) = (J* - J(π))/β of a policy π, in nats per text.

        The standard error is that of both samples, the policy's and the start model's.

        Args:
            rewards: of n texts that the policy wrote, (n,).
            kls: the texts' sums of KL(π, π₀), token by token, or their log(π/π₀), (n,).
            kl_coef: β > 0.
        """
        best = self.value(kl_coef)
        values = np.asarray(rewards, np.float64) - kl_coef * np.asarray(kls, np.float64)
        error = math.hypot(best.standard_error, standard_error(values))
        return Estimate(float(best.value - values.mean()) / kl_coef, error / kl_coef)

    def win_rate(self, rewards: npt.ArrayLike) -> Estimate:
        """How often a policy's text earns more than a text of the start model, ties counting half.

        This is the policy's mean reward quantile under the start model: 0.5 for the start model,
        n/(n+1) for best-of-n. The standard error is that of the policy's texts alone.
        """
        quantiles = self._quantiles(np.asarray(rewards, np.float64))
        return Estimate(float(quantiles.mean()), standard_error(quantiles))

    def _quantiles(self, rewards: Floats) -> Floats:
        below = np.searchsorted(self._sorted, rewards, "left")
        not_above = np.searchsorted(self._sorted, rewards, "right")
        return (below + not_above) / (2 * len(self))

    def _weights(self, kl_coef: float) -> Floats:
        """exp(r/β), divided by the largest so that nothing overflows."""
        if not 0 < kl_coef < math.inf:
            raise ValueError(
                f"kl_coef={kl_coef!r} must be above 0: without KL no optimum is finite"
            )
        return np.exp((self.rewards - self._sorted[-1]) / kl_coef)

    def _shares(self, kl_coef: float) -> Floats:
        """The texts' shares of the weights, which sum to 1."""
        weights = self._weights(kl_coef)
        return weights / weights.sum()

    def _point(self, p: Floats, kl: float) -> Point:
        means = {name: float(p @ column) for name, column in self.columns.items()}
        means["win_rate"] = float(p @ self._quantiles(self.rewards))
        if {"log_prob", "tokens"} <= means.keys():
            means["perplexity"] = math.exp(-means["log_prob"] / means["tokens"])
        return Point(kl, float(1 / np.square(p).sum()), means)


# ------------------------------------------------------------------------- the start model's texts


def start_frontier(
    policy: GPT2Policy,
    env: VecEnv,
    n_episodes: int = 8192,
    seed: int = 0,
    judges: Mapping[str, SentimentModel] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Frontier:
    """Writes texts with the start model and measures them, or reads what an earlier call wrote.

    The caller's random numbers are left as they were.

    Args:
        policy: holds the start model's weights.
        env: whose rows are played; 256 rows and more write a text several times faster than a few.
        n_episodes: texts, rounded up to whole batches.
        seed: of the environment's rows and torch's generator.
        judges: other sentiment models by name.
        cache: a file (.npz) to keep the measures in. It is read again only for the same weights,
            texts and rewards: a reward is a black box, and recognised by what it pays for the first
            batch, which is always written anew.
        progress: called after every batch with the texts written and `n_episodes`.

    Returns:
        A `Frontier` with the measures `sentiment`, `length` and other numbers of the last step's
        info, each of `judges`, and of each whole text `tokens`, those written, and `log_prob`.

    Raises:
        ValueError: if the environment draws from several prompts. π* over all their texts would
            write more often to prompts that pay well, which no policy can.
    """
    prompts = len(prompts_of(env))
    if prompts > 1:
        raise ValueError(
            f"env draws from {prompts} prompts: a frontier is that of one prompt's texts; make env"
            " with one prompt, or none"
        )
    path = None if cache is None else Path(cache)
    policy.set_training_mode(False)
    with seeded(env, seed, policy.device), torch.no_grad():
        batches = [_measure(policy, _collect(policy, env), judges or {})]
        key = _fingerprint(policy, batches[0], n_episodes, seed)
        columns = None if path is None else _read(path, key)
        if columns is None:
            while (done := sum(len(batch["reward"]) for batch in batches)) < n_episodes:
                progress(done, n_episodes)
                batches.append(_measure(policy, _collect(policy, env), judges or {}))
            # A text that a wrapper cuts off lacks the numbers of a finished one.
            names = [name for name in batches[0] if all(name in batch for batch in batches)]
            columns = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
            if path is not None:
                _write(path, key, columns)
    return Frontier(columns.pop("reward"), columns)


def read_frontier(path: str | os.PathLike[str]) -> Frontier | None:
    """The frontier in the cache of `start_frontier`, None if the file is missing or damaged."""
    columns = _read(Path(path))
    return None if columns is None else Frontier(columns.pop("reward"), columns)


def _collect(policy: GPT2Policy, env: VecEnv) -> Episodes:
    episodes = collect_episodes(policy, env)
    assert episodes is not None
    return episodes


def _measure(
    policy: GPT2Policy, episodes: Episodes, judges: Mapping[str, SentimentModel]
) -> dict[str, Floats]:
    infos, mask = episodes.infos, episodes.mask.cpu()
    log_prob = policy.evaluate_texts(episodes.texts, mask).log_prob
    columns = {
        "reward": episodes.returns.double().cpu().numpy(),
        "tokens": episodes.lengths.double().cpu().numpy(),
        "log_prob": log_prob.double().sum(1).cpu().numpy(),
    }
    for name in numbers(infos):
        columns[name] = np.array([info[name] for info in infos], np.float64)
    return columns | scores_of(judges, [info["text"] for info in infos], columns)


def _fingerprint(policy: GPT2Policy, first: dict[str, Floats], n_episodes: int, seed: int) -> str:
    """A hash of the model, and of the environment and rewards by the first batch's measures."""
    digest = hashlib.sha256(json.dumps([policy.config.to_dict(), n_episodes, seed]).encode())
    for name, tensor in policy.gpt2.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for name, column in first.items():
        digest.update(name.encode())
        if name != "log_prob":  # it is the model's, and threads change its last digits
            digest.update(column.round(6).tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str | None = None) -> dict[str, Floats] | None:
    """The measures in the file, None if it is missing, damaged, or not of `key`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if key not in (None, str(file["key"])):
                return None
            columns = {name: file[name] for name in file.files if name != "key"}
            return columns if "reward" in columns else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None


def _write(path: Path, key: str, columns: dict[str, Floats]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=np.array(key), **columns)  # type: ignore[arg-type]
