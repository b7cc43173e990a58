"""The bridge from Gymnasium's vector environments to stable-baselines3's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)


class SB3VecEnv(VecEnv):
    """A Gymnasium `VectorEnv` behind stable-baselines3's `VecEnv` interface.

    SB3 wants rows that restart in the step in which they end. An environment in mode `"SameStep"` does
    that itself; in the two other modes the ended rows are reset here, through Gymnasium's
    `reset(options={"reset_mask": ...})`.

    >>> import gymnasium as gym, text_sentiment_env
    >>> envs = gym.make_vec("TextSentiment-v0", num_envs=8)
    >>> SB3VecEnv(envs).reset().shape
    (8, 20)
    """

    def __init__(self, envs: VectorEnv) -> None:
        """Wraps `envs`, which `close()` closes too.

        Raises:
            ValueError: if the environment doesn't say how it resets ended rows.
        """
        self.envs = envs
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{envs} has no metadata['autoreset_mode'], so that it is unknown which step starts a"
                " new episode: set it to a gymnasium.vector.AutoresetMode"
            )
        self._resets_itself = mode is AutoresetMode.SAME_STEP
        # Rows that are environments of their own, from vectorization_mode="sync" or "async".
        self._separate = isinstance(envs.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self._actions: np.ndarray | None = None
        self.render_mode = envs.render_mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        """Starts all rows, with the seeds of `seed` and the options of `set_options`, once."""
        seeds: Any = list(self._seeds) if any(s is not None for s in self._seeds) else None
        self.reset_infos = [{} for _ in range(self.num_envs)]
        for options in self._options_of_resets():
            obs, infos = self.envs.reset(seed=seeds, options=options)
            _fill(self.reset_infos, infos)
        self._reset_seeds()
        self._reset_options()
        return obs

    def _options_of_resets(self) -> list[dict[str, Any] | None]:
        """One dict for all rows; separate environments are reset in groups of equal options."""
        if not self._separate or not any(self._options):
            return [_merge(self._options)]
        distinct = [o for i, o in enumerate(self._options) if o not in self._options[:i]]
        return [
            {**o, "reset_mask": np.array([row == o for row in self._options])} for o in distinct
        ]

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions (B,) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observations, float32 rewards (B,), dones (B,), and a dict of information a row."""
        obs, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        dones = np.logical_or(terminated, truncated)
        cut = np.logical_and(truncated, ~terminated).tolist()
        rows: list[dict[str, Any]] = [{"TimeLimit.truncated": c} for c in cut]
        ended = np.flatnonzero(dones).tolist()
        if ended and self._resets_itself:
            _fill(rows, infos.pop("final_info"))
            final_obs = infos.pop("final_obs")
            for row in ended:
                rows[row]["terminal_observation"] = final_obs[row]
        elif ended:
            _fill(rows, infos)
            for row in ended:
                rows[row]["terminal_observation"] = obs[row].copy()
            obs, infos = self.envs.reset(options={"reset_mask": dones})
        # The other infos belong to the new episode in rows that ended, and to this step elsewhere.
        targets = rows.copy()
        for row in ended:
            targets[row] = self.reset_infos[row] = {}
        _fill(targets, infos)
        for row in ended:  # but RecordEpisodeStatistics reports the old episode in every mode
            if "episode" in self.reset_infos[row]:
                rows[row]["episode"] = self.reset_infos[row].pop("episode")
        return obs, np.asarray(rewards, np.float32), dones, rows

    def close(self) -> None:
        """Closes the wrapped environment."""
        self.envs.close()

    # All rows share one environment, and so its attributes and methods. A tuple or an array of
    # `num_envs` items, such as np_random or action_masks(), holds one value for each row.

    def _find(self, name: str) -> Any:
        envs: Any = self.envs
        while not hasattr(envs, name) and isinstance(envs, gym.vector.VectorWrapper):
            envs = envs.env
        return getattr(envs, name)  # an AttributeError that names the environment and the attribute

    def _per_row(self, value: Any, indices: VecEnvIndices) -> list[Any]:
        shared = not isinstance(value, tuple | np.ndarray) or len(value) != self.num_envs
        return [value if shared else value[row] for row in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute, for each row asked for; AttributeError for an unknown one."""
        if self._separate:
            values = self.envs.unwrapped.get_attr(attr_name)  # type: ignore[attr-defined]
            return [values[row] for row in self._get_indices(indices)]
        return self._per_row(self._find(attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute; that of one shared environment cannot be set for some rows alone."""
        if self._separate:
            values = self.get_attr(attr_name) if indices is not None else [None] * self.num_envs
            for row in self._get_indices(indices):
                values[row] = value
            self.envs.unwrapped.set_attr(attr_name, values)  # type: ignore[attr-defined]
            return
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(
                f"set_attr({attr_name!r}) with indices={indices}: all rows share one environment, so"
                " that an attribute is set for all (indices=None)"
            )
        self._find(attr_name)
        setattr(self.envs.unwrapped, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Calls a method, once if rows share an environment; each row asked for gets its result."""
        if self._separate:
            call = self.envs.unwrapped.call  # type: ignore[attr-defined]
            results = call(method_name, *method_args, **method_kwargs)
            return [results[row] for row in self._get_indices(indices)]
        return self._per_row(self._find(method_name)(*method_args, **method_kwargs), indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for each row: single-environment wrappers don't go around a vector environment."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """None for each row: a text has no picture."""
        return [None] * self.num_envs


def _fill(
    rows: list[dict[str, Any]], infos: dict[str, Any], of_all: np.ndarray | None = None
) -> None:
    """Gives each row its part of Gymnasium's dict of arrays with `_key` masks.

    Inside a dict, such as RecordEpisodeStatistics' `episode`, what has no mask has the dict's, `of_all`.
    """
    if not isinstance(infos, dict):
        raise ValueError(
            f"env's infos are a {type(infos).__name__}: take off the wrapper that turns them into one"
            " dict a row (DictInfoToList)"
        )
    for key, values in infos.items():
        if key.startswith("_"):
            continue
        mask = infos[f"_{key}"] if of_all is None else infos.get(f"_{key}", of_all)
        if isinstance(values, dict):
            parts: list[dict[str, Any]] = [{} for _ in rows]
            _fill(parts, values, mask)
            values = parts
        elif isinstance(values, np.ndarray) and values.ndim == 1:
            values = values.tolist()  # Python scalars, as single environments return
        for row in np.flatnonzero(mask).tolist():
            rows[row][key] = values[row]


def _merge(options: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Gymnasium's one dict of options from SB3's one a row: a list under each key."""
    keys = {key for row in options for key in row}
    return {key: [row.get(key) for row in options] for key in keys} or None


def wrap_token_env(
    env: GymEnv | VectorEnv, verbose: int = 0, monitor_wrapper: bool = True
) -> VecEnv:
    """Any environment in which an action is a token, as a `VecEnv`.

    Args:
        env: a Gymnasium `VectorEnv`, a single environment, or a `VecEnv`.
        verbose, monitor_wrapper: as in stable-baselines3.

    Raises:
        ValueError: if its actions are not tokens, or its observations are no longer token ids.
    """
    if isinstance(env, VectorEnv):
        env = SB3VecEnv(env)
    env = BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"env has the action space {env.action_space}, but must have Discrete(V), an action a"
            " token: REINFORCE plays environments such as TextSentiment-v0"
        )
    if not env.has_attr("vocabulary"):
        raise ValueError(
            "env has no attribute `vocabulary` that says which GPT-2 token each action is: use"
            " TextSentiment-v0, or give your environment a text_sentiment_env.Vocabulary"
        )
    if getattr(env, "norm_obs", False):
        raise ValueError("env normalises token ids: make VecNormalize with norm_obs=False")
    return env
