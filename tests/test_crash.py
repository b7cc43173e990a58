"""A run that is killed at any point, or whose disk is full there; then resumed.

Points are all openings for writing, writings, fsyncs, renamings and deletions of files in the run's
folder. A first run counts them, so that new files are covered by themselves.
"""

import copy
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from disk import in_child

from agents import page, training
from agents.arguments import parse_arguments
from agents.atomic import atomic_write
from agents.runs import RunFolder

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
    pytest.mark.skipif(torch.cuda.is_initialized(), reason="CUDA cannot be used behind a fork"),
]

FLAGS = [
    *("--n-layer", "1", "--n-embd", "4", "--n-head", "1", "--num-envs", "2", "--max-tokens", "2"),
    *("--eval-episodes", "2", "--start-episodes", "2"),
    *("--model", "random", "--sentiment-model", "vader", "--quiet"),
    *("--vocabulary", "small", "--kl-coef", "0.01", "--lr-decay", "linear", "--device", "cpu"),
    *("--updates", "2", "--save-every", "1", "--keep", "1", "--out", "replaced"),
]
KINDS = {"open", "write", "fsync", "rename", "unlink", "chmod", "mkdir"}
ERROR = re.compile(r"error: .*No space left on device: '.*/run.*'\n")


def draw(folder, judge):
    """In place of `page.write`, which takes longer than all the rest."""
    with atomic_write(folder / "report.html") as temporary, open(temporary, "wb") as file:
        file.write(b"drawn")


@pytest.fixture(scope="module")
def program():
    """The example as a function of its folder, which it goes on with if there is a checkpoint."""
    args = parse_arguments(FLAGS)

    def main(folder):
        resume = bool(RunFolder(folder).checkpoints())
        if resume:
            RunFolder(folder).read_arguments()
        now = copy.deepcopy(args)
        now.run.out, now.run.resume = str(folder), resume
        training.parse_arguments = lambda *_: now
        page.write = draw
        return training.main()

    return main


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """The points of an uninterrupted run, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:  # here once, so that no child imports or traces
        patch.setattr(training, "parse_arguments", None)
        patch.setattr(page, "write", None)
        assert program(folder) == 0
    shutil.rmtree(folder)
    status, errors, points = in_child(folder, lambda: program(folder))
    assert (status, errors) == (0, "")
    return points, contents(folder)


def contents(folder):
    """All that a run leaves, but times; tensors are compared by their bytes."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    result = {}
    for name, path in found.items():
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                result[name] = {member: archive.read(member) for member in archive.namelist()}
        elif path.suffix == ".csv":
            lines = path.read_text("utf-8").splitlines()
            rows = list(csv.reader(line for line in lines if not line.startswith("#")))
            timed = [c for c in rows[0] if c == "t" or (c.startswith("time/") and "total" not in c)]
            assert timed
            kept = [i for i, column in enumerate(rows[0]) if column not in timed]
            result[name] = [rows[0], *([row[i] for i in kept] for row in rows)]
        elif name == "summary.json":
            summary = json.loads(path.read_text("utf-8"))
            names = ("updates", "episodes", "tokens", "before", "after", "error", "changes")
            result[name] = {name: summary[name] for name in names}
        elif path.is_file():
            result[name] = path.read_bytes()
    return result


def chosen(points):
    """Points by number; of the many writings of one large file the first and the last alone."""
    return {
        i: point
        for i, point in enumerate(points)
        if not (point.startswith("write") and points[i - 1 : i + 2] == [point] * 3)
    }


def interfere(program, folder, points, expected, start=None, **interference):
    """Interferes at points of a run, resumes it, and tells which did not end well.

    Args:
        program: the function of a folder.
        folder: to use.
        points: label by number.
        expected: contents of the folder in the end.
        start: a folder to begin with; None: an empty one.
        **interference: of `Disk`.
    """
    wrong = []
    for at, point in points.items():
        shutil.rmtree(folder, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, folder)
        status, errors, _ = in_child(folder, lambda: program(folder), at=at, **interference)
        if interference["action"] == "kill":
            fair = status == -signal.SIGKILL and not errors
        else:
            fair = (status == 2 and ERROR.fullmatch(errors)) or (status == 0 and not errors)
        resumed = in_child(folder, lambda: program(folder))
        found = contents(folder) if resumed[0] == 0 else {}
        if not fair or resumed[:2] != (0, "") or found != expected:
            names = [n for n in found | expected if found.get(n) != expected.get(n)]
            wrong.append((at, point, status, errors, resumed[:2], names))
    return wrong


def test_every_file_is_seen_to_be_written(whole):
    points, expected = whole
    assert {point.split()[0] for point in points} == KINDS
    for name in expected:
        folder, _, file = name.rpartition("/")
        temporary = os.path.join(folder, f".{file}.tmp")
        new = temporary.replace("checkpoint.zip", "checkpoint-new.zip")  # renamed then
        assert {f"open {new}", f"write {new}", f"fsync {new}", f"rename {new}"} <= {*points}


def test_killed_at_any_point_and_resumed_equals_uninterrupted(program, whole, tmp_path):
    points, expected = whole
    points = chosen(points)
    assert len(points) > 100
    assert interfere(program, tmp_path / "run", points, expected, action="kill") == []


def test_a_full_disk_at_any_point_is_told_and_resumed_equals_uninterrupted(
    program, whole, tmp_path
):
    points, expected = whole
    assert interfere(program, tmp_path / "run", chosen(points), expected, action="fail") == []


def test_a_disk_that_stays_full(program, whole, tmp_path):
    points, expected = whole
    some = dict([*chosen(points).items()][::7])
    stays = {"action": "fail", "lasting": True}
    assert interfere(program, tmp_path / "run", some, expected, **stays) == []


def test_killed_again_at_the_start_of_the_resumed_run(program, whole, tmp_path):
    """The first kill leaves half a rotation and temporary files."""
    points, expected = whole
    start = tmp_path / "start"
    at = max(i for i, point in enumerate(points) if point == "rename checkpoint-new.zip")
    in_child(start, lambda: program(start), at=at, action="kill")
    assert {path.name for path in start.glob("*.zip")} == {"checkpoint-1.zip", "checkpoint-new.zip"}
    for name in (".checkpoint-new.zip.1.tmp", ".progress.csv.2.tmp"):
        (start / name).write_bytes(b"half")
    shutil.copytree(start, tmp_path / "counted")
    _, _, points = in_child(tmp_path / "counted", lambda: program(tmp_path / "counted"))
    begun = chosen(points[: points.index("rename .progress.csv.tmp") + 1])
    assert {"unlink .checkpoint-new.zip.tmp", "rename checkpoint-new.zip"} <= {*begun.values()}
    for action in ("kill", "fail"):
        wrong = interfere(program, tmp_path / "run", begun, expected, start, action=action)
        assert wrong == []


def test_the_same_seed_gives_equal_files_in_another_process(whole, tmp_path):
    """Times apart; hashes are seeded anew there, so that no set's order may count."""
    root = Path(__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
    command = [sys.executable, "examples/train_reinforce.py", *FLAGS[:-1], str(tmp_path / "run")]
    subprocess.run(command, cwd=root, env=os.environ | environment, check=True)
    found = contents(tmp_path / "run")
    for name in ("learning_curves.png", "evaluation.png"):
        assert found.pop(name).startswith(b"\x89PNG")
    assert found.pop("report.html").startswith(b"<!doctype html>")
    assert found == {n: c for n, c in whole[1].items() if n != "report.html"}
