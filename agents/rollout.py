"""Whole episodes, written by a policy in the rows of a vector environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from agents import distributed
from agents.checkpoint import set_row_states
from agents.policy import GPT2Policy
from text_sentiment_env import SentimentModel, checks
from text_sentiment_env.task import RESERVED


def scores_of(
    judges: Mapping[str, SentimentModel], texts: list[str], measures: Iterable[str]
) -> dict[str, npt.NDArray[np.float64]]:
    """The scores (k,) of judges that pay nothing, of any size.

    Args:
        judges: by the names that their scores will have beside `measures`.
        texts: k texts.
        measures: names that the caller's other measures have.

    Raises:
        ValueError: for a judge with the name of another measure, or that returns no proper scores.
    """
    if taken := judges.keys() & (set(RESERVED) - {"vader"}).union(measures):
        raise ValueError(
            f"judges has the names {sorted(taken)}, which other measures have already: choose other"
            " names"
        )
    return {
        name: checks.scores(f"judges[{name!r}]", judge(list(texts)), len(texts))
        for name, judge in judges.items()
    }


def numbers(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the info entries that are numbers in every row, without those that hold a dot.

    Gymnasium's wrappers add names such as `TimeLimit.truncated`.
    """
    kinds = (int, float, np.number)
    return [
        name
        for name in infos[0]
        if "." not in name and all(isinstance(info.get(name), kinds) for info in infos)
    ]


@dataclass
class Episodes:
    """One finished episode a row; arrays (B, L), a column for each place of the observation."""

    texts: Tensor  # int64: the final observations
    mask: Tensor  # bool: the places that the agent wrote
    rewards: Tensor  # float32: the environment's reward for each of them
    infos: list[dict[str, Any]]  # the last step's, a row; `text` is always among them

    @property
    def returns(self) -> Tensor:
        """The undiscounted return of each episode, float32 (B,)."""
        return self.rewards.sum(1)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens that the agent wrote in each, int64 (B,)."""
        return self.mask.sum(1)

    def parts(self, size: int | None) -> list[slice]:
        """This rank's rows, at most `size` at a time."""
        own = distributed.shard(len(self.texts))
        size = size or len(self.texts)
        starts = range(own.start, own.stop, size)
        return [slice(first, min(first + size, own.stop)) for first in starts]

    def numbers(self) -> list[str]:
        """The names of the infos that are a number in every row."""
        return numbers(self.infos)

    def gather(self) -> Episodes:
        """The whole batch, of which each rank holds its own rows."""
        infos = [info for infos in distributed.gather_objects(self.infos) for info in infos]
        texts, mask, rewards = map(distributed.gather, (self.texts, self.mask, self.rewards))
        return Episodes(texts, mask, rewards, infos)


def prompts_of(env: VecEnv) -> list[str]:
    """The prompts that the rows draw from; one, the empty text, where there are none."""
    return list(env.get_attr("prompts")[0]) if env.has_attr("prompts") else [""]


@contextmanager
def _own_rewards(env: VecEnv) -> Iterator[None]:
    """Within, a `VecNormalize` around the environment neither changes rewards nor learns from them."""
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        yield
        return
    modes = normalize.training, normalize.norm_reward
    normalize.training = normalize.norm_reward = False
    try:
        yield
    finally:
        normalize.training, normalize.norm_reward = modes


@contextmanager
def seeded(env: VecEnv, seed: int, device: torch.device) -> Iterator[None]:
    """Within, torch and the rows draw from `seed`, and rewards are those of the environment.

    Afterwards all is as it was: random states, the options of the next reset, and a `VecNormalize`,
    whose statistics are the training's.
    """
    inner: Any = env.unwrapped  # keeps the seeds and options that its next reset will use
    seeds, options, drawn = list(inner._seeds), inner._options, None
    if env.has_attr("np_random"):
        drawn = [generator.bit_generator.state for generator in env.get_attr("np_random")]
    with _own_rewards(env), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        env.seed(seed)
        inner._options = [{} for _ in options]
        try:
            yield
        finally:
            if drawn is not None:
                set_row_states(env, drawn)
            inner._seeds, inner._options = seeds, options


def collect_episodes(
    policy: GPT2Policy,
    env: VecEnv,
    on_step: Callable[[dict[str, Any]], bool] = lambda step: True,
    deterministic: bool = False,
) -> Episodes | None:
    """Resets the environment and writes one text a row.

    Draft and replay: the policy drafts each text to its end on the device, and the environment is
    then stepped through the drafted tokens. The result equals asking the policy at every step,
    because an observation shows nothing but the tokens written.

    A row whose text has ended restarts, as SB3's rows do. From then on it is given action 0, an
    ordinary token. Its new text may run for `max_tokens` steps, more than any other row still needs,
    and the next reset drops it.

    Args:
        policy: writes the texts.
        env: its rows are the batch.
        on_step: called after each step with its `rewards`, `dones` and `infos`, a row each as SB3's
            callbacks see them, and the number of `tokens` written; False stops.
        deterministic: takes the likeliest tokens instead of sampling.

    Returns:
        The episodes on the policy's device, or None if `on_step` stopped.

    Raises:
        ValueError: if the environment shows another text than was written.
    """
    obs = np.asarray(env.reset())
    B, L = obs.shape
    max_tokens = env.get_attr("max_tokens")[0] if env.has_attr("max_tokens") else L
    pad = policy.pad_index
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
            draft = policy.generate_texts(shown, max_tokens, deterministic).cpu().numpy()
        actions = np.zeros(B, np.int64)
        actions[rows] = draft[places]
        obs, step_rewards, dones, step_infos = env.step(actions)  # type: ignore[assignment]
        texts[places], mask[places], rewards[places] = actions[rows], True, step_rewards[rows]
        lengths[rows] += 1
        ended = writing & dones
        for row in np.flatnonzero(ended):
            infos[row] = step_infos[row]
        writing &= ~ended
        if not np.array_equal(obs[writing], texts[writing]):
            raise ValueError(
                "env shows another text than the tokens written, from which alone REINFORCE can"
                " learn: take off the wrapper that changes observations or actions"
            )
        step = {"rewards": step_rewards, "dones": ended, "infos": step_infos, "tokens": len(rows)}
        if not on_step(step):
            return None
    for i, info in enumerate(infos):
        if "text" not in info:  # cut off by a wrapper, such as TimeLimit
            text = env.get_attr("vocabulary")[0].decode(texts[i])
            infos[i] = {**info, "text": text}
    tensors = [torch.as_tensor(x, device=policy.device) for x in (texts, mask, rewards)]
    return Episodes(tensors[0], tensors[1], tensors[2], infos)
