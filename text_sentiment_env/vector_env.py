"""The native vector environment: many texts at once, and one call of the judge a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from text_sentiment_env import checks
from text_sentiment_env.env import TextSentimentEnv
from text_sentiment_env.task import Floats, TaskAttributes, TextSentimentTask, Tokens

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]
Infos = dict[str, Any]


class TextSentimentVectorEnv(TaskAttributes, VectorEnv[Tokens, Tokens, npt.NDArray[Any]]):
    """`num_envs` texts written side by side: the same task and arguments as `TextSentimentEnv`.

    Row i, seeded with s, equals the single environment seeded with s + i, token for token and reward
    for reward. One call judges all texts that end in a step.

    >>> import gymnasium as gym
    >>> import text_sentiment_env
    >>> envs = gym.make_vec("TextSentiment-v0", num_envs=3)
    >>> observations, infos = envs.reset(seed=0)
    >>> observations.shape
    (3, 20)
    >>> observations, rewards, terminated, truncated, infos = envs.step([0, 99, 5])
    >>> terminated.tolist(), infos["_text"].tolist(), infos["length"].tolist()
    ([False, True, False], [False, True, False], [0, 0, 0])

    Attributes:
        num_envs: rows B.
        single_observation_space, single_action_space: as in `TextSentimentEnv`.
        metadata: holds this instance's `autoreset_mode`.
    """

    metadata: dict[str, Any] = TextSentimentEnv.metadata

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Makes the environments.

        Args:
            num_envs: rows B, at least 1.
            autoreset_mode: the restart of rows after their end, as Gymnasium's enum or its value.
                `"NextStep"`: the next step starts a new text and ignores the row's action.
                `"SameStep"`: the same step starts it, and `final_obs` and `final_info` hold the end.
                `"Disabled"`: call `reset(options={"reset_mask": terminated})`.
            render_mode: `"ansi"`: `render()` returns the text of every row. `"human"`: finished
                texts are printed.
            **arguments: see `TextSentimentEnv`.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a bad value, naming argument, value and fix.
        """
        num_envs = checks.whole_number("num_envs", num_envs, least=1)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode={autoreset_mode!r} must be one of {modes}") from None
        self.render_mode = checks.render_mode(render_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.task = TextSentimentTask(**arguments)
        width = self.task.observation_space.shape[0]
        checks.memory("num_envs", num_envs, rows=num_envs, width=width)
        self.num_envs = num_envs
        self.single_action_space = self.task.action_space
        self.single_observation_space = self.task.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        seeded = [seeding.np_random() for _ in range(num_envs)]
        self._generators = np.empty(num_envs, object)  # an array, for fast indexing by rows
        self._generators[:] = [generator for generator, _ in seeded]
        self._seeds = [seed for _, seed in seeded]
        self._pad = self.vocabulary.pad_index  # V, just above the actions
        self._tokens = np.full((num_envs, width), self._pad)
        self._starts = np.zeros(num_envs, np.int64)
        self._positions = np.zeros(num_envs, np.int64)
        self._potentials = np.zeros(num_envs)
        self._rows = np.arange(num_envs)
        self._ended = self._rows  # rows that have ended and not restarted
        self._began = False

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """One generator a row, as Gymnasium's SyncVectorEnv has."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """One seed a row."""
        return tuple(self._seeds)

    # -------------------------------------------------------------------------------------- reset

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tokens, Infos]:
        """Starts the texts of all rows, or of the rows in a mask.

        Args:
            seed: a number s seeds row i with s + i; a list holds one seed a row; None leaves a
                row's generator as it is.
            options: `"prompt"`: a string for all rows, or a list of one a row, None where it is to
                be drawn. `"reset_mask"`: bool (B,), the rows to reset; the others go on.

        Returns:
            Observations int64 (B, L), and the infos `prompt` (objects) and `_prompt`.

        Raises:
            ResetNeeded: when the first reset is of some rows only.
            ValueError: for seeds or options of the wrong kind or length.
        """
        options = checks.options(options, ("prompt", "reset_mask"))
        mask = checks.reset_mask(options.get("reset_mask"), self.num_envs)
        prompts = checks.prompts(options.get("prompt"), self.num_envs)
        seeds = checks.seeds(seed, self.num_envs)
        if not self._began and not mask.all():
            raise ResetNeeded("the first reset must be of all rows: leave out 'reset_mask'")
        rows = np.flatnonzero(mask)
        for row in rows.tolist():
            if seeds[row] is not None:
                self._generators[row], self._seeds[row] = seeding.np_random(seeds[row])
        infos = self._start(rows, [prompts[row] for row in rows.tolist()])
        self._ended = np.setdiff1d(self._ended, rows)
        self._began = True
        return self._tokens.copy(), infos

    def _start(self, rows: Rows, prompts: Sequence[str | None] | None = None) -> Infos:
        """Starts k rows' texts with the prompts given (None: drawn), and returns their infos."""
        texts, tokens, lengths = self.task.start(self._generators[rows], prompts)
        self._tokens[rows] = self._pad
        if self.task.prompt_length:
            self._tokens[rows, : self.task.prompt_length] = tokens
        self._starts[rows] = self._positions[rows] = lengths
        if self.task.shaping:
            self._potentials[rows] = 0
        return self._infos(rows, {"prompt": texts})

    # --------------------------------------------------------------------------------------- step

    def step(self, actions: npt.ArrayLike) -> tuple[Tokens, Floats, Mask, Mask, Infos]:
        """Appends a token to every row.

        Args:
            actions: integers (B,), each in [0, V).

        Returns:
            Observations int64 (B, L), rewards float64 (B,), terminated and truncated bool (B,), and
            infos.

        Raises:
            ResetNeeded: before the first `reset`, after a step that failed in the judge, and in mode
                `"Disabled"` when a row has ended and hasn't been reset.
            ValueError: for actions of the wrong shape, type or range, and for a judge that returns
                no proper scores.
        """
        actions = self._check(actions)
        infos: Infos = {}
        if not self._began:
            raise ResetNeeded("no texts are being written: call reset() for all rows first")
        if len(self._ended) and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"rows {self._ended.tolist()} have no text to go on with: call reset(),"
                " with options={'reset_mask': terminated} for the ended rows alone"
            )
        self._began = False  # in case the step fails on the way, in the judge: its texts are lost
        if len(self._ended):
            infos = self._start(self._ended)
            # A row that restarts takes no action: PAD behind its prompt changes nothing.
            actions[self._ended] = self._pad
        acting = actions != self._pad
        self._tokens[self._rows, self._positions] = actions
        self._positions += acting
        terminated = self.task.ends(actions, self._positions - self._starts)
        self._ended = terminated.nonzero()[0]
        rewards = np.zeros(self.num_envs)
        if self.task.shaping:
            acting_rows = acting.nonzero()[0]
            infos |= self._reward(rewards, acting_rows, terminated[acting_rows])
        elif len(self._ended):
            infos |= self._reward(rewards, self._ended)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and len(self._ended):
            final_obs = np.empty(self.num_envs, object)
            for row in self._ended:
                final_obs[row] = self._tokens[row].copy()
            final = {"final_obs": final_obs, "final_info": infos}
            masks = {f"_{name}": terminated.copy() for name in final}
            infos = final | masks | self._start(self._ended)
            self._ended = self._ended[:0]
        self._began = True
        return self._tokens.copy(), rewards, terminated, np.zeros(self.num_envs, bool), infos

    def _check(self, actions: npt.ArrayLike) -> Tokens:
        """A copy of the actions, int64 (B,), or an error that names the wrong one."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} integers, one a row, got an array of shape"
                f" {actions.shape} and type {actions.dtype}"
            )
        own = actions.astype(np.int64)
        unsigned = own.view(np.uint64)  # negative actions become huge ones
        if np.maximum.reduce(unsigned) >= self._pad:
            row = int((unsigned >= self._pad).argmax())
            raise ValueError(
                f"actions[{row}]={actions[row]} is out of range: it must lie in [0, {self._pad})"
            )
        return own

    def _reward(self, rewards: Floats, rows: Rows, ended: Mask | None = None) -> Infos:
        """Fills in the rewards of some rows, from one call of the judge.

        Args:
            rewards: the rewards of all rows, float64 (B,), changed in place.
            rows: the rows to be judged, (k,).
            ended: the rows among them that have ended, bool (k,); None: all.

        Returns:
            The infos of the rows that have ended.
        """
        rewards[rows], terms, ends = self.task.reward(
            self._tokens[rows], self._starts[rows], self._potentials[rows], ended
        )
        if ended is not None:
            self._potentials[rows], rows = terms, rows[ended]
        if self.render_mode == "human" and ends:
            for text, reward in zip(ends["text"], rewards[rows], strict=True):
                print(f"{text}  [reward {reward:+.2f}]", flush=True)
        return self._infos(rows, ends)

    def _infos(self, rows: Rows, values: dict[str, npt.NDArray[Any]]) -> Infos:
        """The infos of some rows in Gymnasium's form: the other rows hold None or 0."""
        infos: Infos = {}
        mask = np.zeros(self.num_envs, bool)
        mask[rows] = True
        for name, of_rows in values.items():
            make = np.empty if of_rows.dtype.hasobject else np.zeros  # empty objects are None
            infos[name] = make(self.num_envs, of_rows.dtype)
            infos[name][rows] = of_rows
            infos[f"_{name}"] = mask.copy()
        return infos

    # -------------------------------------------------------------------------------------- others

    def render(self) -> tuple[str, ...] | None:
        """The texts so far in mode `"ansi"`; `"human"` prints finished texts in `step` instead."""
        if self.render_mode != "ansi":
            return None
        return tuple(self.vocabulary.decode_batch(self._tokens))

    def action_masks(self) -> Mask:
        """The actions that are allowed, bool (B, V): all of them."""
        return np.ones((self.num_envs, len(self.vocabulary)), bool)
