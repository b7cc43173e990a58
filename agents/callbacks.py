"""What a training run shows and keeps: progress bar, lines in the terminal, checkpoints, CSV log."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys
from stable_baselines3.common.type_aliases import MaybeCallback

from agents.atomic import atomic_write, named_errors

UPDATES = "train/n_updates"


class ProgressBar(ProgressBarCallback):
    """SB3's bar counts rows; this one counts updates, or written tokens."""

    def __init__(self, total_updates: int | None) -> None:
        """Counts to `total_updates`; None: to the tokens that `learn` was given."""
        super().__init__()
        self._total = total_updates

    def _on_training_start(self) -> None:
        if self._total is not None:
            # SB3 makes the bar from this length. A bar of tqdm.rich cannot be given another one.
            self.locals = self.locals | {"total_timesteps": self.model.num_timesteps + self._total}
        super()._on_training_start()
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


class CheckpointCallback(BaseCallback):
    """Saves between two updates, every `save_every` of them and after the last."""

    def __init__(self, save: Callable[[Any], None], save_every: int) -> None:
        """`save` takes the model; a run that goes on from what it wrote equals this one."""
        super().__init__()
        self._save, self._save_every = save, save_every

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        self._saved = self.model._n_updates  # zero, or those of the checkpoint

    def _on_rollout_start(self) -> None:
        if self.model._n_updates % self._save_every == 0:
            self._save_once()

    def _on_training_end(self) -> None:
        self._save_once()

    def _save_once(self) -> None:
        if self.model._n_updates > self._saved:
            self._save(self.model)
            self._saved = self.model._n_updates


class AppendingCSV(KVWriter):
    """A log of one row an update, in which a resumed run goes on behind its checkpoint's last row.

    Columns are in alphabetical order. A row is in the file when `write` returns, where it survives a
    kill of the program; `RunFolder.save` makes it survive a power cut.
    """

    def __init__(self, path: Path, updates: int) -> None:
        """Keeps the rows of the first `updates` updates; a row cut off by a kill is dropped."""
        self._path = path
        self._columns: list[str] = []
        self._replace([row for row in read_rows(path) if int(row[UPDATES]) <= updates])

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Appends a row."""
        row = filter_excluded_keys(key_values, key_excluded, "csv")
        if not row.keys() <= set(self._columns):
            return self._replace([*read_rows(self._path), row])
        with (
            named_errors(self._path),
            open(self._path, "a", newline="", encoding="utf-8") as file,
        ):
            self._writer(file).writerow(row)

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        self._columns = sorted({column for row in rows for column in row})
        with (
            atomic_write(self._path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = self._writer(file)
            if self._columns:
                writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")

    def close(self) -> None:
        """Does nothing: no file stays open."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log that are whole: a kill may have cut off the last one."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n") and "\0" not in line)
    whole = (row for row in rows if None not in row and None not in row.values())
    return [row for row in whole if row.get(UPDATES, "").isdigit()]
