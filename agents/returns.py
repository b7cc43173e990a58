"""Monte-Carlo returns and the baselines that REINFORCE subtracts from them (Williams 1992).

Arrays are (B, L): a row an episode, a column a place of the observation. `mask` marks the places that the
agent wrote; each row's are contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASELINES = ("none", "mean", "ema", "rloo", "value")


def monte_carlo_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted rewards to go, G_t = r_t + γ G_{t+1}: (B, L) to (B, L)."""
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        returns[:, t] = following
    return returns


def hold_last(returns: Tensor, mask: Tensor) -> Tensor:
    """Returns (B, L) in which an episode that has ended keeps its last one.

    This is what a baseline takes from the other episodes: for a reward paid at the end, an episode's
    reward, however long it was.
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
    groups = hold_last(returns, mask).unflatten(0, (-1, group_size))
    others = groups.sum(1, keepdim=True) - groups
    return others.flatten(0, 1) / (group_size - 1)
