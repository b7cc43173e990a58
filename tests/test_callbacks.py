"""Progress bar, checkpoints, and the log of a run, which survives kills and is continued."""

import csv
import time

import pytest
from reinforce_helpers import make_model
from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks import (
    UPDATES,
    AppendingCSV,
    CheckpointCallback,
    MonitorCSV,
    ProgressBar,
    ResumableCSV,
    add_progress_bar,
    read_rows,
)

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


def test_first_columns_and_a_head_stay_where_they_are(tmp_path):
    path = tmp_path / "a.csv"
    rows = [{"l": n, "r": n / 4, "update": n} for n in (1, 1, 2)]
    log = ResumableCSV(path, 0, "update", ("r", "l", "update"), "#head\n")
    assert path.read_text() == "#head\nr,l,update\n"
    log.append(rows)
    log.append([rows[0] | {"b": 5, "a": 6}])
    assert path.read_text().splitlines()[:2] == ["#head", "r,l,update,a,b"]
    ResumableCSV(path, 1, "update", ("r", "l", "update"), "#head\n")
    assert path.read_text() == "#head\nr,l,update,a,b\n0.25,1,1,,\n0.25,1,1,,\n0.25,1,1,6,5\n"


def test_the_episodes_of_a_resumed_run_keep_their_clock(tmp_path):
    path = tmp_path / "monitor.csv"
    path.write_text('#{"t_start": 5.0, "env_id": "TextSentiment-v0"}\nr,l,t,update\n1,2,3,1\n')
    model = make_model()
    model._n_updates = 1
    model.learn(10**6, MonitorCSV(path, 1), total_updates=1)
    head, _, first, *others = path.read_text().splitlines()
    assert head == '#{"t_start": 5.0, "env_id": "TextSentiment-v0"}'
    assert first.startswith("1,2,3,1,")
    assert len(others) == model.n_envs
    times = [float(row["t"]) for row in read_rows(path, "update")]
    assert times == sorted(times)
    assert times[1] == pytest.approx(time.time() - 5, abs=600)


@pytest.mark.parametrize("head", ["", "r,l,t", "#", "#{}", "#[]", '#{"t_start": "x"}'])
def test_a_monitor_file_without_its_head_is_named(tmp_path, head):
    path = tmp_path / "monitor.csv"
    path.write_text(f"{head}\nr,l,t,update\n")
    with pytest.raises(ValueError, match=r"monitor.csv is damaged: .* move the file away"):
        MonitorCSV(path, 1)
    MonitorCSV(path, 0)  # a new run starts a new one
    assert path.read_text().startswith('#{"t_start": ')


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


class Stop(BaseCallback):
    """Stops after the third step of the environment."""

    def _on_step(self):
        return self.n_calls < 3


def learn_with_bar(model, total_updates, total_timesteps=10**9, **arguments):
    callbacks = add_progress_bar(None, total_updates)
    (bar,) = callbacks.callbacks
    model.learn(total_timesteps, callbacks, total_updates=total_updates, **arguments)
    return bar.pbar


def test_the_bar_counts_updates():
    model = make_model()
    pbar = learn_with_bar(model, 3)
    assert (pbar.n, pbar.total) == (3, 3)
    pbar = learn_with_bar(model, 2, reset_num_timesteps=False)  # those of this call alone
    assert (pbar.n, pbar.total) == (2, 2)


def test_the_bar_counts_tokens():
    model = make_model()
    pbar = learn_with_bar(model, None, 30)
    assert pbar.n == model.num_timesteps >= 30
    assert pbar.total == 30
    before = model.num_timesteps
    pbar = learn_with_bar(model, None, 30, reset_num_timesteps=False)
    assert pbar.n == model.num_timesteps - before >= 30


def test_the_bar_counts_what_was_written_before_a_stop():
    model = make_model()
    callbacks = add_progress_bar(Stop(), None)
    model.learn(10**6, callbacks)
    assert callbacks.callbacks[-1].pbar.n == model.num_timesteps > 0
    assert model._n_updates == 0


@pytest.mark.parametrize("kind", ["none", "callback", "function", "list"])
def test_callbacks_in_every_form_are_called_before_the_bar(kind):
    calls = []

    class Counts(BaseCallback):
        def _on_step(self):
            calls.append(self.num_timesteps)
            return True

    def function(local_variables, _):
        calls.append(local_variables["tokens"])
        return True

    given = {
        "none": None,
        "callback": Counts(),
        "function": function,
        "list": [Counts(), function],
    }[kind]
    callbacks = add_progress_bar(given, 1)
    assert isinstance(callbacks.callbacks[-1], ProgressBar)
    assert len(callbacks.callbacks) == {"none": 1, "list": 3}.get(kind, 2)
    make_model().learn(10**6, callbacks, total_updates=1)
    assert bool(calls) == (kind != "none")


@pytest.mark.parametrize("total_updates", [None, 2])
def test_learn_shows_a_bar_only_when_asked(total_updates, capsys):
    make_model().learn(20, total_updates=total_updates)
    assert "%" not in "".join(capsys.readouterr())
    make_model().learn(20, progress_bar=True, total_updates=total_updates)
    assert "%" in "".join(capsys.readouterr())
