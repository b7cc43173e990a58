"""Writing whole episodes with a policy, one a row of a vector environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.policy import GPT2Policy


@dataclass
class Episodes:
    """One finished episode a row; arrays (B, L), a column a place of the observation."""

    texts: Tensor  # int64: the final observations
    mask: Tensor  # bool: the places that the agent wrote
    rewards: Tensor  # float32: what the environment paid for each of them
    infos: list[dict[str, Any]]  # the last step's, a row

    def rows(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Texts and mask of some rows."""
        return self.texts[rows], self.mask[rows]


def collect(
    policy: GPT2Policy,
    env: VecEnv,
    on_step: Callable[[int], bool] = lambda tokens: True,
    deterministic: bool = False,
) -> Episodes | None:
    """Resets the environment and writes one text a row.

    The policy writes each text to its end in one go, and the environment is then shown one token after
    another: the same as asking the policy at every step, since the tokens written are all there is to see.

    A row whose text has ended restarts, as SB3's rows do. It then writes action 0, which ends nothing,
    so that its new text outlasts the others' and is dropped at the next reset.

    Args:
        policy: what writes.
        env: its rows are the batch.
        on_step: told after each step how many tokens were written in it; False stops.
        deterministic: the likeliest tokens instead of draws.

    Returns:
        The episodes on the policy's device, or None if it was stopped.

    Raises:
        ValueError: if the environment shows another text than was written.
    """
    obs = np.asarray(env.reset())
    B, L = obs.shape
    max_tokens = env.get_attr("max_tokens")[0] if env.has_attr("max_tokens") else L
    pad = policy.config.vocab_size
    texts, mask, rewards = obs.copy(), np.zeros(obs.shape, bool), np.zeros(obs.shape, np.float32)
    infos: list[dict[str, Any]] = [{} for _ in range(B)]
    lengths = (obs != pad).sum(1)
    draft = obs
    writing = np.ones(B, bool)
    while writing.any():
        rows = np.flatnonzero(writing)
        places = rows, lengths[rows]
        if (draft[places] == pad).any():  # at the start, or where the limit was not known
            shown = torch.as_tensor(obs, device=policy.device)
            draft = policy.write(shown, max_tokens, deterministic).cpu().numpy()
        actions = np.zeros(B, np.int64)
        actions[rows] = draft[places]
        obs, step_rewards, dones, step_infos = env.step(actions)  # type: ignore[assignment]
        texts[places], mask[places], rewards[places] = actions[rows], True, step_rewards[rows]
        lengths[rows] += 1
        for row in np.flatnonzero(writing & dones):
            infos[row] = step_infos[row]
        writing &= ~dones
        if not np.array_equal(obs[writing], texts[writing]):
            raise ValueError(
                "env shows another text than the tokens written, from which alone can be learned: take"
                " off the wrapper that changes observations or actions"
            )
        if not on_step(len(rows)):
            return None
    return Episodes(
        torch.as_tensor(texts, device=policy.device),
        torch.as_tensor(mask, device=policy.device),
        torch.as_tensor(rewards, device=policy.device),
        infos,
    )
