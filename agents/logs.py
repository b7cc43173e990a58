"""What a run logs beside its own files: TensorBoard, and trackers of experiments."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import (
    HParam,
    KVWriter,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)

from agents.atomic import atomic_write
from agents.callbacks import UPDATES

TEXTS = 8  # of a batch, shown as samples
PROJECT = "text-sentiment-env"
METRICS = ("rollout/ep_rew_mean", "rollout/sentiment", "rollout/length", "train/kl")


class TextLog(BaseCallback):
    """Logs what a row of numbers cannot hold: arguments, distributions and texts of each batch."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """`arguments` of the run, shown beside its figures."""
        super().__init__()
        self._arguments = arguments

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        kinds = (bool, int, float, str)
        values = {k: v if isinstance(v, kinds) else str(v) for k, v in self._arguments.items()}
        # TensorBoard shows the last value of the scalars that are named here.
        hyperparameters = HParam(values, dict.fromkeys(METRICS, 0.0))
        self.logger.record("hparams", hyperparameters, exclude=("csv", "track"))

    def _on_rollout_end(self) -> None:
        episodes = self.locals["episodes"]
        returns = episodes.returns.cpu().numpy()
        texts = [" ".join(info["text"].split()) for info in episodes.infos[:TEXTS]]
        rows = [[r, text] for r, text in zip(returns.tolist(), texts, strict=False)]
        samples = "\n".join(f"- **{r:+.2f}** {text}" for r, text in rows)
        self.logger.record("rollout/returns", returns, exclude="csv")
        self.logger.record("rollout/lengths", episodes.lengths.cpu().numpy(), exclude="csv")
        self.logger.record("rollout/samples", samples, exclude=("csv", "track"))
        self.logger.record("rollout/texts", rows, exclude=("csv", "tensorboard"))


class TensorBoard(TensorBoardOutputFormat):
    """SB3's output for TensorBoard, in which a resumed run goes on behind its checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        """Writes to `folder`; TensorBoard ignores what earlier files hold after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        # In place of SB3's constructor, which has no `purge_step`.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._is_closed = False


class Tracker(KVWriter):
    """Logs a run by update to trackio or wandb, which have the same interface.

    The step is the number of the update. `tracker.json` in the run's folder holds the run's name there
    and the last update logged, so that a resumed run continues it and logs no update twice.
    """

    def __init__(
        self, package: str, folder: Path, config: Mapping[str, Any], updates: int, quiet: bool
    ) -> None:
        """Begins a run of the tracker, or continues it.

        Args:
            package: `"trackio"` or `"wandb"`.
            folder: of the run.
            config: the run's arguments.
            updates: done so far; 0 begins a new run of the tracker.
            quiet: keeps the tracker from printing.

        Raises:
            ValueError: if the tracker cannot begin the run, or `tracker.json` is damaged.
        """
        self._package, self._quiet, self._file = package, quiet, folder / "tracker.json"
        self._records = self._read() if updates else {}
        new = f"{re.sub(r'[^a-zA-Z0-9_.-]', '-', folder.name)[:40]}-{uuid.uuid4().hex[:8]}"
        self._record = self._records.setdefault(package, {"name": new, "updates": 0})
        name = self._record["name"]
        arguments: dict[str, Any] = {"name": name, "config": dict(config), "resume": "allow"}
        if package == "wandb":  # which finds a run by its id, trackio by its name
            arguments |= {"id": name, "allow_val_change": True}
            if quiet:
                os.environ.setdefault("WANDB_SILENT", "true")
        self._module = importlib.import_module(package)
        try:
            with self._silence():
                self._run = self._module.init(project=PROJECT, **arguments)
        except Exception as error:  # of any kind: no account, no network, no space
            raise ValueError(f"--track {package}: {error}") from error
        self._write_record()

    def _read(self) -> dict[str, Any]:
        if not self._file.exists():
            return {}
        try:
            records = json.loads(self._file.read_text("utf-8"))
            return {
                k: {"name": str(v["name"]), "updates": int(v["updates"])}
                for k, v in records.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{self._file} is damaged ({error}): remove it to begin a new run of the tracker"
            ) from None

    def _write_record(self) -> None:
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(self._records, indent=2), "utf-8")

    def _silence(self) -> AbstractContextManager[Any]:
        return redirect_stdout(io.StringIO()) if self._quiet else nullcontext()

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Logs one update, unless the run has done so before it was killed."""
        update = int(key_values[UPDATES])
        if update <= self._record["updates"]:
            return
        values = filter_excluded_keys(key_values, key_excluded, "track")
        self._run.log({name: self._shown(value) for name, value in values.items()}, step=update)
        self._record["updates"] = update
        self._write_record()

    def _shown(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._module.Histogram(value)
        if isinstance(value, list):
            return self._module.Table(columns=["reward", "text"], data=value)
        return value

    def close(self) -> None:
        """Does nothing: `finish` ends the run, after the last evaluation."""

    def finish(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Logs the measures of `agents.evaluation.evaluate` before and after, and ends the run."""
        measures = {
            f"{when}/{name}": value
            for when, values in (("before", before), ("after", after))
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        pairs: Sequence[Any] = list(zip(before["samples"], after["samples"], strict=True))[:40]
        rows = [[old["reward"], old["text"], new["reward"], new["text"]] for old, new in pairs]
        columns = ["reward before", "text before", "reward after", "text after"]
        table = self._module.Table(columns=columns, data=rows)
        with self._silence():
            self._run.log({**measures, "samples": table}, step=self._record["updates"])
            if hasattr(self._run, "summary"):  # wandb's; trackio shows the last value
                self._run.summary.update(measures)
            self._module.finish()  # not the run's: trackio would end it again at exit
