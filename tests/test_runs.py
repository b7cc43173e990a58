"""The folder of a run: lock, checkpoints, arguments, signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents import runs
from agents.runs import RunFolder, StopSignals


class Model:
    """Saves its number of updates."""

    def __init__(self, updates):
        self._n_updates = updates

    def save(self, path):
        path.write_text(str(self._n_updates))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    def load(path, **_):
        text = path.read_text()
        if not text.isdigit():
            raise ValueError(f"{path} is not a whole checkpoint")
        return Model(int(text))

    monkeypatch.setattr(runs.REINFORCE, "load", load)
    return RunFolder(tmp_path)


def contents(folder):
    return {path.name: path.read_text() for path in folder.path.glob("*.zip")}


# -------------------------------------------------------------------------------------- checkpoints


def test_keeps_the_last_ones_under_their_age(folder):
    for updates in range(1, 6):
        folder.save(Model(updates), keep=3)
    assert contents(folder) == {
        "checkpoint.zip": "5",
        "checkpoint-1.zip": "4",
        "checkpoint-2.zip": "3",
    }
    folder.save(Model(6), keep=1)
    assert contents(folder) == {"checkpoint.zip": "6"}


def test_killed_at_any_renaming_the_newest_is_found_and_none_is_lost(folder, monkeypatch):
    replace, killed = Path.replace, 0

    def counting(self, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counting)
    for kill_at in range(5):
        left = 10**9
        for updates in range(1, 4):
            folder.save(Model(updates), keep=3)
        left = kill_at
        try:
            folder.save(Model(4), keep=3)
        except KeyboardInterrupt:
            killed += 1
        left = 10**9
        with folder.locked():
            model, path = folder.load()
            assert (model._n_updates, path.name) == (4, "checkpoint.zip")
            newest = [folder.path / f for f in ("checkpoint-1.zip", "checkpoint-2.zip")]
            assert [p.read_text() for p in newest] == ["3", "2"]
    assert killed == 4  # three old ones move up, and the new one takes its place


def test_a_save_that_fails_leaves_everything(folder):
    folder.save(Model(1), keep=2)
    folder.save(Model(2), keep=2)
    before = contents(folder)

    class Full(Model):
        def save(self, path):
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        folder.save(Full(3), keep=2)
    assert contents(folder) == before


def test_goes_on_from_the_newest_whole_one_and_sets_the_damaged_aside(folder):
    for updates in (1, 2, 3):
        folder.save(Model(updates), keep=3)
    (folder.path / "checkpoint.zip").write_text("")
    with pytest.warns(UserWarning, match=r"going on from checkpoint-1.zip, because .*not a whole"):
        model, path = folder.load()
    assert (model._n_updates, path.name) == (2, "checkpoint-1.zip")
    assert (folder.path / "checkpoint.damaged").exists()
    folder.save(Model(4), keep=3)
    assert contents(folder) == {
        "checkpoint.zip": "4",
        "checkpoint-1.zip": "2",
        "checkpoint-2.zip": "1",
    }


def test_if_none_can_be_loaded_the_newest_ones_error_is_told(folder):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        folder.load()
    for updates in (1, 2):
        folder.save(Model(updates), keep=2)
    for name in contents(folder):
        (folder.path / name).write_text("")
    with pytest.raises(ValueError, match=r"checkpoint.zip is not a whole checkpoint"):
        folder.load()
    assert len(contents(folder)) == 2  # nothing is moved


# --------------------------------------------------------------------------------------------- lock

HOLD = """
import sys
from agents.runs import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert holder.stdout.readline() == "locked\n"
    for _ in range(2):
        with (
            pytest.raises(ValueError, match=f"in use by process {holder.pid}: wait for it"),
            RunFolder(tmp_path).locked(),
        ):
            pass
    holder.kill()  # the operating system unlocks it
    holder.wait()
    with RunFolder(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_before_it_writes_leaves_no_folder(tmp_path):
    for name in ("new", "there"):
        folder = RunFolder(tmp_path / name)
        if name == "there":
            folder.path.mkdir()  # the user's, not the run's
        with pytest.raises(ValueError, match="bad input"), folder.locked():
            raise ValueError("bad input")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with RunFolder(tmp_path / "new").locked():
        (tmp_path / "new" / "progress.csv").touch()
    assert (tmp_path / "new" / "progress.csv").exists()


def test_leftovers_of_killed_saves_are_removed_at_the_start(tmp_path):
    (tmp_path / "gpt2").mkdir()
    for name in (".summary.json.12.tmp", ".checkpoint-new.zip.7.tmp", "gpt2/.config.json.12.tmp"):
        (tmp_path / name).touch()
    with RunFolder(tmp_path).locked():
        assert {path.name for path in tmp_path.rglob("*")} == {".lock", ".lock-holder", "gpt2"}


# ---------------------------------------------------------------------------------------- arguments


def test_changes_are_recorded_with_their_update(folder):
    folder.save(Model(1), keep=1)
    arguments = {"updates": 4, "quiet": False, "target_length": (8, 20)}
    assert folder.record(arguments, resumed_at=None) == []
    assert folder.read_arguments() == {"updates": 4, "quiet": False, "target_length": [8, 20]}
    first = [{"update": 1, "argument": "updates", "from": 4, "to": 9}]
    assert folder.record(arguments | {"updates": 9}, resumed_at=1) == first
    second = [*first, {"update": 5, "argument": "quiet", "from": False, "to": True}]
    assert folder.record(arguments | {"updates": 9, "quiet": True}, resumed_at=5) == second
    stored = json.loads((folder.path / "arguments.json").read_text())
    assert (stored["updates"], stored["quiet"], stored["changes"]) == (9, True, second)


def test_a_missing_record_is_named(folder):
    with pytest.raises(ValueError, match=r"holds no run: arguments.json is missing"):
        folder.read_arguments()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\0"])
def test_damaged_arguments_are_named(folder, text):
    folder.save(Model(1), keep=1)
    (folder.path / "arguments.json").write_text(text)
    with pytest.raises(ValueError, match=r"arguments.json is damaged"):
        folder.read_arguments()


# ------------------------------------------------------------------------------------------ signals


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_at_once_or_are_deferred(name, status):
    stops = []
    with StopSignals() as stop:
        assert stop.status == 0
        with pytest.raises(KeyboardInterrupt):
            send(name)
        assert stop.status == status
    with StopSignals() as stop, stop.deferred(lambda: stops.append(stop.status)):
        send(name)
        assert stops == [status]
        send("SIGTERM")  # schedulers repeat themselves
        assert stop.status == status
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")  # a second Ctrl-C ends at once


def test_handlers_are_put_back_and_nohup_is_respected():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        with StopSignals() as stop:
            send("SIGHUP")
            assert stop.status == 0
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        signal.signal(signal.SIGHUP, previous)
