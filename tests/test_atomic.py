import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents import atomic
from agents.atomic import atomic_write, remove_leftovers

FILE = Path(atomic.__file__)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_written(tmp_path, old):
    path = tmp_path / "file"
    if old:
        path.write_text(old)
    with atomic_write(str(path)) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path  # a rename is atomic on one file system alone
        assert (path.read_text() if path.exists() else None) == old
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def write_half(path):
    with atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise OSError("No space left on device")


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "file"
    if old:
        path.write_text(old)
    with pytest.raises(OSError, match="No space left"):
        write_half(path)
    assert names(tmp_path) == (["file"] if old else [])
    assert not old or path.read_text() == "old"


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_failure_behind_the_writing_leaves_what_was_there(tmp_path, monkeypatch, function):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_args, **_kwargs):
        raise OSError("broken disk")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="broken disk"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_an_interrupt_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


KILLED = """
import os, runpy, signal, sys
file, path, point = sys.argv[1:]
atomic_write = runpy.run_path(file)["atomic_write"]
calls = []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(name, function):
    def call(*args, **kwargs):
        calls.append(name)
        if point == f"{name}{calls.count(name)}":
            die()
        result = function(*args, **kwargs)
        if point == f"after {name}{calls.count(name)}":
            die()
        return result
    return call

os.fsync, os.replace = dying("fsync", os.fsync), dying("replace", os.replace)
with atomic_write(path) as temporary:
    with open(temporary, "w") as out:
        out.write("new")
        out.flush()
        if point == "writing":
            die()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("writing", "old"),
        ("fsync1", "old"),
        ("after fsync1", "old"),
        ("replace1", "old"),
        ("after replace1", "new"),
        ("fsync2", "new"),
    ],
)
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, point, expected):
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(FILE), str(path), point])
    assert done.returncode == -9
    assert path.read_text() == expected
    with atomic_write(path) as temporary:  # what the dead process left is not in the way
        temporary.write_text("newer")
    assert path.read_text() == "newer"


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot open a folder")
def test_file_and_folder_are_flushed_around_the_rename(tmp_path, monkeypatch):
    path, events, descriptors = tmp_path / "file", [], {}
    open_, fsync, replace = os.open, os.fsync, os.replace

    def opened(name, *args, **kwargs):
        descriptor = open_(name, *args, **kwargs)
        descriptors[descriptor] = Path(name)
        return descriptor

    def flushed(descriptor):
        events.append(("flush", descriptors[descriptor]))
        fsync(descriptor)

    def renamed(source, target):
        events.append(("rename", Path(source)))
        replace(source, target)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert events == [("flush", temporary), ("rename", temporary), ("flush", tmp_path)]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_mode_is_the_umasks(tmp_path):
    (tmp_path / "other").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_a_killed_writer_left_is_removed(tmp_path):
    kill = (
        "import os, signal, sys; from agents.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    )
    root = str(Path(__file__).parents[1])
    path = tmp_path / "a.json"
    subprocess.run([sys.executable, "-c", kill, path], env={**os.environ, "PYTHONPATH": root})
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == 1
    kept = {".hidden", ".lock", "x.tmp", ".git"}
    for name in (*kept, ".model.safetensors.123"):  # the last: older versions' name
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == kept
