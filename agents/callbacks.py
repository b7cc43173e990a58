"""Callbacks of REINFORCE."""

from __future__ import annotations

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.type_aliases import MaybeCallback


class ProgressBar(ProgressBarCallback):
    """SB3's bar counts rows; this one counts updates, or written tokens."""

    def __init__(self, total_updates: int | None) -> None:
        """Counts to `total_updates`; None: to the tokens that `learn` was given."""
        super().__init__()
        self._total = total_updates

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self._total is not None:
            self.pbar.reset(self._total)
        self._seen = self._count()

    def _count(self) -> int:
        return self.model._n_updates if self._total is not None else self.model.num_timesteps

    def _on_step(self) -> bool:
        if self._total is None:
            self._move()
        return True

    def _on_rollout_start(self) -> None:
        self._move()

    def _on_training_end(self) -> None:
        self._move()
        super()._on_training_end()

    def _move(self) -> None:
        self.pbar.update(self._count() - self._seen)
        self._seen = self._count()


def add_progress_bar(callback: MaybeCallback, total_updates: int | None) -> CallbackList:
    """`callback`, in any form that SB3 takes, followed by a progress bar."""
    given = callback if isinstance(callback, list) else [] if callback is None else [callback]
    callbacks = [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in given]
    return CallbackList([*callbacks, ProgressBar(total_updates)])
