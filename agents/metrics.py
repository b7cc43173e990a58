"""The figures that REINFORCE logs of a batch and of an update."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.rollout import Episodes
from agents.sampling import NonFiniteError


def standard_error(values: npt.ArrayLike) -> float:
    """The standard error of the mean of n independent values; 0 for one, where it is not defined."""
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def rollout_metrics(episodes: Episodes) -> dict[str, float]:
    """Means over a batch: reward, length, and every number of the last step's info."""
    returns, lengths = episodes.returns.cpu().numpy(), episodes.lengths.cpu().numpy()
    metrics = {
        "ep_rew_mean": returns.mean(),
        "ep_rew_std": returns.std(),
        "ep_len_mean": lengths.mean(),
    }
    infos = episodes.infos
    # A text that has ended by itself wrote one token more than `length` counts.
    if all("length" in info for info in infos):
        ended = [n > info["length"] for n, info in zip(lengths, infos, strict=True)]
        metrics["end_rate"] = np.mean(ended)
    for name in episodes.numbers():
        metrics[name] = np.mean([info[name] for info in infos])
    return {name: float(value) for name, value in metrics.items()}


def update_metrics(
    mask: Tensor, log_prob: Tensor, log_ratio: Tensor, entropy: Tensor, baseline: Tensor
) -> dict[str, float]:
    """Means over a batch: entropy, KL estimates, perplexity under the start model, baseline.

    All arguments are (B, L); `log_prob` to `entropy` are 0 outside the mask.
    """
    tokens, k3 = mask.sum(), torch.expm1(-log_ratio) + log_ratio
    means = {
        "entropy": entropy.sum() / tokens,  # nats per token
        "kl": log_ratio.sum(1).mean(),  # nats per text
        "kl_k3": k3.sum(1).mean(),
        "perplexity": torch.exp((log_ratio - log_prob).sum() / tokens),
        "baseline": (baseline * mask).sum() / tokens,
    }
    values = torch.stack([mean.double() for mean in means.values()]).tolist()  # one host read
    return dict(zip(means, values, strict=True))


def finite_measures(
    names: Iterable[str], losses: Tensor, grad_norm: Tensor, update: int
) -> dict[str, float]:
    """The terms of the loss, their sum and the gradient's norm, in one host read.

    Args:
        names: of the terms.
        losses: one value a term.
        grad_norm: a scalar.
        update: number of the update, for the message.

    Raises:
        NonFiniteError: naming the first that is not finite.
    """
    *values, norm = torch.cat([losses, grad_norm[None].to(losses)]).tolist()
    measures = dict(zip(names, values, strict=True))
    for name, value in measures.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"update {update}: the {name} is {value}; no weight has been changed. Lower"
                " learning_rate, or look at the last texts and rewards"
            )
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"update {update}: the gradient's norm is {norm}; no weight has been changed. Lower"
            " learning_rate, or use precision='fp32'"
        )
    return measures | {"loss": sum(values), "grad_norm": norm}
