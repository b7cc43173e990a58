"""Monte-Carlo returns and the baselines that REINFORCE subtracts from them (Williams 1992).

Arrays are (B, L): a row is an episode, a column a place of the observation. `mask` marks the places
that the agent wrote; each row's are contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

BaselineKind = Literal["none", "mean", "ema", "rloo", "value"]
BASELINES = get_args(BaselineKind)
EMA_DECAY = 0.9
DEFAULT_GROUP_SIZE = 4


def monte_carlo_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted rewards to go, G_t = r_t + γ G_{t+1}: (B, L) to (B, L)."""
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        returns[:, t] = following
    return returns


def extend_last_return(returns: Tensor, mask: Tensor) -> Tensor:
    """Returns (B, L) in which an episode that has ended keeps its last one.

    Other episodes compare themselves with this. For a reward paid at the end it is an episode's
    reward, however long the episode was.
    """
    columns = torch.arange(returns.shape[1], device=returns.device)
    last = (columns * mask).amax(1, keepdim=True)
    return returns.gather(1, torch.minimum(columns.expand_as(returns), last))


def leave_one_out(returns: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """The mean return of the other rows of a group (Kool et al. 2019, Ahmadian et al. 2024): (B, L).

    Args:
        returns: (B, L), the rows of a group next to each other.
        mask: written places, bool (B, L).
        group_size: rows that began with the same prompt, at least 2; divides B.
    """
    groups = extend_last_return(returns, mask).unflatten(0, (-1, group_size))
    others = groups.sum(1, keepdim=True) - groups
    return others.flatten(0, 1) / (group_size - 1)


def normalize(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (B, L) with mean 0 and deviation 1 over the written places; 0 elsewhere."""
    return _centred(advantages, mask) / deviation(advantages, mask)


def deviation(advantages: Tensor, mask: Tensor) -> Tensor:
    """The standard deviation over the written places, and a little, so that it can be divided by."""
    return _centred(advantages, mask).square().sum().div(mask.sum()).sqrt() + 1e-8


def _centred(advantages: Tensor, mask: Tensor) -> Tensor:
    # Sums and a mask, because picking by a mask makes the host wait for a GPU.
    return mask * (advantages - (mask * advantages).sum() / mask.sum())


class Baseline:
    """What REINFORCE subtracts from the returns of a batch, and the prompts of its groups.

    Attributes:
        kind: one of `BASELINES`, with `"auto"` resolved.
        group_size: rows that are compared with each other, and given the same prompt.
        moving_average: with `"ema"`, the mean return at each place (L,) over past updates.
    """

    def __init__(
        self, kind: str, group_size: int | None, batch_size: int, prompts: Sequence[str]
    ) -> None:
        """Resolves what the arguments leave open.

        Args:
            kind: one of `BASELINES`; `"auto"`: `"rloo"`, or `"ema"` for a single row.
            group_size: None: 4, or all rows where the environment has one prompt or none.
            batch_size: rows of the whole batch.
            prompts: the environment's.

        Raises:
            ValueError: if the baseline compares rows and the batch cannot be split into groups.
        """
        if kind == "auto":
            kind = "rloo" if batch_size > 1 else "ema"
        given = group_size is not None
        if group_size is None:
            group_size = DEFAULT_GROUP_SIZE if len(prompts) > 1 else batch_size
        if kind in ("mean", "rloo") and batch_size < 2:
            raise ValueError(
                f"baseline={kind!r} compares a row with others but env has one: make more rows"
                " (gym.make_vec), or use baseline='ema'"
            )
        if kind == "rloo" and (group_size < 2 or batch_size % group_size):
            source = "" if given else ", the default with prompts,"
            raise ValueError(
                f"group_size={group_size}{source} must be at least 2 and divide the {batch_size} rows"
                " of env: choose another group_size or num_envs"
            )
        self.kind, self.group_size = kind, group_size
        self.batch_size = batch_size
        self.prompts = list(prompts)
        self.moving_average: Tensor | None = None

    def draw_prompts(self, generator: np.random.Generator) -> list[str] | None:
        """A prompt for each row, the same within a group; None: the environment may draw."""
        if self.kind != "rloo" or len(self.prompts) < 2:
            return None
        groups = self.batch_size // self.group_size
        drawn = generator.integers(len(self.prompts), size=groups).repeat(self.group_size)
        return [self.prompts[i] for i in drawn]

    def estimate(self, returns: Tensor, mask: Tensor, values: Tensor) -> Tensor:
        """The baseline (B, L) of a batch.

        No row's baseline depends on the row's own return, so that the gradient stays unbiased.

        Args:
            returns: (B, L).
            mask: written places, bool (B, L).
            values: the value head's, (B, L).
        """
        if self.kind == "value":
            return values
        if self.kind in ("mean", "rloo"):
            size = self.group_size if self.kind == "rloo" else len(returns)
            return leave_one_out(returns, mask, size)
        if self.kind == "none":
            return torch.zeros_like(returns)
        if self.moving_average is None:  # the first update has no past to compare with
            return torch.zeros_like(returns)
        return self.moving_average.to(returns.device).expand_as(returns)

    def update(self, returns: Tensor, mask: Tensor) -> None:
        """Moves the moving average on, after an update; the other kinds keep nothing.

        Args:
            returns: (B, L).
            mask: written places, bool (B, L).
        """
        if self.kind != "ema":
            return
        mean, past = extend_last_return(returns, mask).mean(0), self.moving_average
        if past is not None:
            mean = EMA_DECAY * past.to(mean.device) + (1 - EMA_DECAY) * mean
        self.moving_average = mean
