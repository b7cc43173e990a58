"""Callbacks of a training run: progress bar, checkpoints, and CSV logs that resume."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
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
        """`save` is called with the model between two updates, where a resumed run can go on exactly."""
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


class ResumableCSV:
    """A CSV log that a resumed run continues: rows after its checkpoint's are dropped.

    A row is in the file when `append` returns, where it survives a kill of the program;
    `RunFolder.save` makes it survive a power cut.
    """

    def __init__(
        self,
        path: Path,
        updates: int,
        column: str = UPDATES,
        first: Sequence[str] = (),
        head: str = "",
    ) -> None:
        """Keeps the rows of the first `updates` updates; a row cut off by a kill is dropped.

        Args:
            path: the file; it need not exist.
            updates: of the checkpoint that the run goes on from, 0 for a new run.
            column: holds each row's update.
            first: names of the first columns; the others follow in alphabetical order.
            head: a line above the names of the columns.
        """
        self._path, self._column, self._first, self._head = path, column, first, head
        self._columns: list[str] = []
        self._replace([row for row in read_rows(path, column) if int(row[column]) <= updates])

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows; a new column is inserted in its place, and empty in the rows before."""
        if not {name for row in rows for name in row} <= set(self._columns):
            return self._replace([*read_rows(self._path, self._column), *rows])
        with (
            named_errors(self._path),
            open(self._path, "a", newline="", encoding="utf-8") as file,
        ):
            self._writer(file).writerows(rows)

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        others = sorted({name for row in rows for name in row} - set(self._first))
        self._columns = [*self._first, *others]
        with (
            atomic_write(self._path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            file.write(self._head)
            writer = self._writer(file)
            if self._columns:
                writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")


def read_rows(path: Path, column: str = UPDATES) -> list[dict[str, str]]:
    """The rows of a log that are whole, with an update in `column`: a kill may have cut off the last."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    if lines and lines[0].startswith("#"):
        del lines[0]
    rows = csv.DictReader(line for line in lines if line.endswith("\n") and "\0" not in line)
    whole = (row for row in rows if None not in row and None not in row.values())
    return [row for row in whole if row.get(column, "").isdigit()]


class AppendingCSV(KVWriter):
    """`progress.csv`: a row an update, its columns in alphabetical order."""

    def __init__(self, path: Path, updates: int) -> None:
        """Goes on behind the row of update `updates`."""
        self._file = ResumableCSV(path, updates)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Appends a row."""
        self._file.append([filter_excluded_keys(key_values, key_excluded, "csv")])

    def close(self) -> None:
        """Does nothing: no file stays open."""


class MonitorCSV(BaseCallback):
    """`monitor.csv`: a row an episode, as stable-baselines3's `Monitor` writes it.

    `stable_baselines3.common.results_plotter` reads it. `r` is the return, `l` the tokens, `t` the
    seconds since `t_start` in the first line, with the pauses before a resume; `update` is the update
    that the episode was played for. The numbers of the last step's info follow.
    """

    def __init__(self, path: Path, updates: int) -> None:
        """Goes on behind the last episode of update `updates`.

        Raises:
            ValueError: if the file's first line is not that of a `Monitor`.
        """
        super().__init__()
        head = json.dumps({"t_start": time.time(), "env_id": "TextSentiment-v0"})
        if updates and path.exists():
            with open(path, encoding="utf-8", errors="replace") as file:
                head = file.readline().removeprefix("#").rstrip()
        try:
            self._t_start = float(json.loads(head)["t_start"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path} is damaged: its first line is {head[:80]!r}, not that of SB3's Monitor;"
                " move the file away to go on without it"
            ) from None
        first = ("r", "l", "t", "update")
        self._file = ResumableCSV(path, updates, "update", first, f"#{head}\n")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        episodes = self.locals["episodes"]
        returns, lengths = episodes.returns.tolist(), episodes.lengths.tolist()
        names, update = episodes.numbers(), self.model._n_updates + 1
        rows = []
        for r, n, info in zip(returns, lengths, episodes.infos, strict=True):
            t = round(time.time() - self._t_start, 6)  # grows within a batch: SB3 sorts by it
            row = {"r": round(r, 6), "l": n, "t": t, "update": update}
            rows.append(row | {name: info[name] for name in names})
        self._file.append(rows)
