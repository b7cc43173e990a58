"""A process killed, or refused, at any of the things it does to files."""

import builtins
import errno
import io
import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path

import torch

# What audit hooks tell before it is done; writing and fsync are replaced instead.
EVENTS = {"os.rename": "rename", "os.remove": "unlink", "os.mkdir": "mkdir", "os.chmod": "chmod"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """What this process does to the files of `folder`; for a forked child, as hooks stay for ever.

    Attributes:
        points: kind and file, in the order in which they were reached.
    """

    def __init__(self, folder, at=None, action=None, lasting=False):
        """Does `action` ("kill" or "fail") at point number `at`; `lasting`: at all later writes too."""
        self.folder, self.at, self.action, self.lasting = str(folder), at, action, lasting
        self.points = []
        self._names = {}  # of open files, by descriptor
        self._open, self._fsync = io.open, os.fsync
        sys.addaudithook(self._audit)
        builtins.open = io.open = self._opened
        os.fsync = self._synced

    def holds(self, path):
        return isinstance(path, str | bytes | Path) and os.fsdecode(path).startswith(self.folder)

    def reach(self, kind, path, first=lambda: None):
        """A point; `first` is done before the action."""
        number = len(self.points)
        name = re.sub(r"\.\d+\.tmp$", ".tmp", os.path.relpath(os.fsdecode(path), self.folder))
        self.points.append(f"{kind} {name}")
        full = self.lasting and self.at is not None and number > self.at
        if number == self.at or (full and kind in ("open", "write", "mkdir")):
            first()
            if self.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            named = () if kind in ("write", "fsync") else (os.fsdecode(path),)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)

    def _audit(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING and self.holds(path):
                self.reach("open", path)
        elif event in EVENTS and self.holds(arguments[0]):
            self.reach(EVENTS[event], arguments[0])

    def _opened(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **rest
    ):
        if not set(mode) & set("wax+") or not self.holds(file):
            return self._open(file, mode, buffering, encoding, errors, newline, **rest)
        raw = Raw(self, file, mode.replace("b", "").replace("t", ""))
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def _synced(self, descriptor):
        # Not done: a kill loses nothing that the kernel has, and flushing takes most of the time.
        path = (
            os.readlink(f"/proc/self/fd/{descriptor}") if os.path.exists("/proc") else self.folder
        )
        if self.holds(path):
            self.reach("fsync", path)


class Raw(io.FileIO):
    """A file of which half of a write has happened at its point."""

    def __init__(self, disk, path, mode):
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data):
        write = super().write
        self.disk.reach("write", self.name, lambda: write(memoryview(data)[: len(data) // 2]))
        return write(data)


def in_child(folder, function, **interference):
    """Runs `function` in a forked child that is interfered with.

    Returns:
        The exit status, negative for a signal; what was printed to stderr; and the points, if the child
        lived to tell them.
    """
    told = folder.with_name(folder.name + ".json")
    errors = folder.with_name(folder.name + ".err")
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            torch.set_num_threads(1)
            with open(errors, "w", encoding="utf-8") as sys.stderr:
                disk = Disk(folder, **interference)
                try:
                    status = function()
                except SystemExit as end:
                    status = end.code
                except BaseException:
                    traceback.print_exc()
            told.write_text(json.dumps(disk.points))
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    points = json.loads(told.read_text()) if told.exists() else None
    return os.waitstatus_to_exitcode(status), errors.read_text("utf-8"), points
