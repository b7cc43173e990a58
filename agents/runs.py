"""The folder of a training run: its lock, its checkpoints, its arguments; and the signals that end it."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import filelock

from agents import distributed
from agents.atomic import atomic_write, remove_leftovers, sync_file, sync_folder
from agents.checkpoint import INCOMING, NEWEST, checkpoints_in
from agents.reinforce import REINFORCE

ARGUMENTS = "arguments.json"


class RunFolder:
    """One run's files.

    Checkpoints are `checkpoint.zip`, the newest, `checkpoint-1.zip`, the one before, and so on. Every
    other file is replaced whole by `agents.atomic.atomic_write`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.exported = self.path / "gpt2"  # the model in Hugging Face's format

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder this process's own, and removes the temporary files of killed ones.

        Raises:
            ValueError: if another process holds the lock; it is named.
        """
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"--out {self.path}: a file has that name; choose a folder") from None
        # In a file of its own, because old versions of filelock empty the locked one.
        lock_file, pid_file = self.path / ".lock", self.path / ".lock-holder"
        lock = filelock.FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            pid = pid_file.read_text() if pid_file.exists() else "unknown"
            raise ValueError(
                f"--out {self.path} is in use by process {pid}: wait for it, stop it, or choose"
                " another folder"
            ) from None
        try:
            with atomic_write(pid_file) as temporary:
                temporary.write_text(str(os.getpid()))
            for folder in (self.path, self.exported):
                remove_leftovers(folder)
            self._finish_rotation()
            yield
        finally:
            for file in (pid_file, lock_file):
                with suppress(OSError):  # Windows keeps a file that is open
                    file.unlink()
            lock.release()
            if made:
                # Bad input may have ended the run before it wrote anything: its name stays free.
                with suppress(OSError):
                    self.path.rmdir()

    # --------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self, age: int) -> Path:
        return self.path / (f"checkpoint-{age}.zip" if age else NEWEST)

    @property
    def _incoming(self) -> Path:
        return self.path / INCOMING

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, the newest first."""
        return checkpoints_in(self.path)

    def save(self, model: REINFORCE, keep: int) -> None:
        """Writes a checkpoint and keeps the last `keep`; all ranks must call this.

        The new one is whole before an old one moves: a kill at any point loses none of them. The logs
        are flushed first, so that they hold a row for every update of the checkpoint.
        """
        for name in ("progress.csv", "monitor.csv") if distributed.rank() == 0 else ():
            if (log := self.path / name).exists():
                sync_file(log)
        model.save(self._incoming)
        if distributed.rank() == 0:
            self._rotate(keep)
        distributed.wait()

    def _rotate(self, keep: int) -> None:
        # Files move up to the first gap, so that a rotation that was killed can be run again.
        gap = next(age for age in range(10**6) if not self._checkpoint(age).exists())
        for age in range(gap, 0, -1):
            self._checkpoint(age - 1).replace(self._checkpoint(age))
        self._incoming.replace(self._checkpoint(0))
        sync_folder(self.path)
        self.remove_old(keep)

    def remove_old(self, keep: int) -> None:
        """Deletes all checkpoints but the last `keep`."""
        for path in self.checkpoints()[keep:]:
            path.unlink()

    def _finish_rotation(self) -> None:
        if self._incoming.is_file():
            self._rotate(keep=10**6)

    def load(self, **arguments: Any) -> tuple[REINFORCE, Path]:
        """Loads the newest checkpoint that is whole, and says which; damaged ones are set aside.

        Args:
            **arguments: of `REINFORCE.load`.

        Raises:
            ValueError: if there is none, or none can be loaded: the newest one's error.
        """
        errors: list[tuple[Path, ValueError]] = []
        for path in self.checkpoints():
            try:
                model = REINFORCE.load(path, **arguments)
            except ValueError as error:
                errors.append((path, error))
                continue
            distributed.wait()  # all ranks have tried the damaged ones
            for damaged, reason in errors if distributed.rank() == 0 else ():
                warnings.warn(f"going on from {path.name}, because {reason}", stacklevel=2)
                self.set_aside(damaged)
            return model, path
        if errors:
            raise errors[0][1]
        raise ValueError(f"{self.path} holds no checkpoint")

    def set_aside(self, checkpoint: Path) -> None:
        """Renames a checkpoint that no run can go on from."""
        checkpoint.replace(checkpoint.with_suffix(".damaged"))

    # ----------------------------------------------------------------------------------- arguments

    def read_arguments(self) -> dict[str, Any]:
        """The arguments that the run was last started with.

        Raises:
            ValueError: if there is no record, or it is damaged.
        """
        arguments, _ = self._read_record()
        return arguments

    def record(self, arguments: Mapping[str, Any], resumed_at: int | None) -> list[dict[str, Any]]:
        """Writes arguments.json, on the first rank.

        Args:
            arguments: of this start.
            resumed_at: the checkpoint's update; None: a new run.

        Returns:
            The arguments that a resume has changed: `update`, `argument`, `from` and `to` of each.
        """
        changes: list[dict[str, Any]] = []
        if resumed_at is not None:
            old, changes = self._read_record()
            new = json.loads(json.dumps(arguments))
            changes += [
                {"update": resumed_at, "argument": name, "from": old[name], "to": new[name]}
                for name in new
                if name in old and old[name] != new[name]
            ]
        if distributed.rank() == 0:
            self.write_json(ARGUMENTS, {**arguments, "changes": changes})
        return changes

    def _read_record(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        file = self.path / ARGUMENTS
        try:
            arguments = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{self.path} holds no run: {ARGUMENTS} is missing") from None
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"{file} is damaged: it holds no arguments")
        return arguments, arguments.pop("changes", [])

    # ------------------------------------------------------------------------------------- prompts

    def keep_prompts(self, source: str | None) -> None:
        """Copies a new run's file of prompts: it goes on with what it began with."""
        if source is not None:
            with atomic_write(self._prompts) as temporary:
                temporary.write_bytes(Path(source).read_bytes())

    def prompts(self, recorded: str | None) -> str | None:
        """The run's copy of its file of prompts, or the file itself where there is no copy."""
        return str(self._prompts) if recorded and self._prompts.is_file() else recorded

    @property
    def _prompts(self) -> Path:
        return self.path / "prompts.txt"

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(json.dumps(data, indent=2), "utf-8")


def run_folders(name: str) -> list[Path]:
    """Where runs of a name go, in this order: `runs/NAME`, `runs/NAME-2`, `runs/NAME-3` …"""
    base = Path("runs") / name
    return [base, *(base.with_name(f"{name}-{n}") for n in range(2, 1000))]


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt: Ctrl-C, a scheduler, a closed terminal.

    Inside `deferred` a signal only asks for a stop, and a second Ctrl-C raises. `status` is the exit
    status of the first signal, 128 + its number (130, 143 or 129); 0 without one.
    """

    def __init__(self) -> None:
        self.status = 0
        self._request_stop: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            # nohup has SIGHUP ignored, and that stays so.
            if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self, request_stop: Callable[[], None]) -> Iterator[None]:
        """Within, a signal calls `request_stop`."""
        self._request_stop = request_stop
        try:
            yield
        finally:
            self._request_stop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes on the Ctrl-C that all its processes have seen already.
        again = self.status and number == signal.SIGINT and distributed.world_size() == 1
        self.status = self.status or 128 + number
        if again or self._request_stop is None:
            raise KeyboardInterrupt
        self._request_stop()
