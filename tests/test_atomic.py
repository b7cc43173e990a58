"""Files are whole or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.atomic import atomic_write, remove_leftovers


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_file_and_folder_are_flushed_before_and_after_the_renaming(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.path.isdir(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    if Path("/proc/self/fd").exists():
        assert calls == [False, "replace", True]


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
