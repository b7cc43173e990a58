"""The log of a run, which survives kills and is continued."""

import csv

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks import UPDATES, AppendingCSV, CheckpointCallback, read_rows

ROWS = [{UPDATES: n, "b/loss": n / 3, "a/reward": -n / 7} for n in range(1, 5)]


def write(path, rows, updates=0):
    log = AppendingCSV(path, updates)
    for row in rows:
        log.write(row, {})
    log.close()
    return path.read_bytes()


def test_columns_are_sorted_and_numbers_exact(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["a/reward", "b/loss", UPDATES]
    assert [{name: float(value) for name, value in row.items()} for row in read] == ROWS


def test_a_new_column_is_inserted_in_order(tmp_path):
    write(tmp_path / "a.csv", [ROWS[0], ROWS[1] | {"b/kl": 1.0}, ROWS[2]])
    rows = read_rows(tmp_path / "a.csv")
    assert list(rows[0]) == ["a/reward", "b/kl", "b/loss", UPDATES]
    assert [row["b/kl"] for row in rows] == ["", "1.0", ""]


@pytest.mark.parametrize("saved", [0, 2, 3])
def test_goes_on_behind_the_checkpoint(tmp_path, saved):
    whole = write(tmp_path / "whole.csv", ROWS)
    write(tmp_path / "a.csv", ROWS[:3])  # killed with a log that is ahead of the checkpoint
    assert write(tmp_path / "a.csv", ROWS[saved:], saved) == whole


def test_cut_off_at_any_byte_no_row_before_it_is_lost(tmp_path, monkeypatch):
    """A kill, or a power cut, in the middle of a write."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of them take seconds
    path = tmp_path / "a.csv"
    whole = write(path, ROWS)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        rows = max(0, whole[:end].count(b"\n") - 1)
        log = AppendingCSV(path, rows)
        for row in ROWS[rows:]:
            log.write(row, {})
        assert path.read_bytes() == whole, end


def test_rows_that_are_no_rows_are_dropped(tmp_path):
    path = tmp_path / "a.csv"
    whole = write(path, ROWS[:2])
    path.write_bytes(whole + b"\0\0\0,,\n1\nx,y,z\n\xff,\xff,3,4\n")
    assert write(path, [], 4) == whole


def test_a_row_is_in_the_file_when_write_returns(tmp_path):
    log = AppendingCSV(tmp_path / "a.csv", 0)
    for n, row in enumerate(ROWS):
        log.write(row, {})
        assert len(read_rows(tmp_path / "a.csv")) == n + 1


def test_checkpoints_are_saved_every_so_often_and_at_the_end():
    saved = []

    class Model:
        _n_updates = 3  # a resumed run: the third is saved already

    callback = CheckpointCallback(lambda model: saved.append(model._n_updates), 3)
    assert isinstance(callback, BaseCallback)
    callback.model = model = Model()
    callback._on_training_start()
    for _ in range(5):
        callback._on_rollout_start()
        model._n_updates += 1
    callback._on_training_end()
    callback._on_training_end()
    assert saved == [6, 8]
