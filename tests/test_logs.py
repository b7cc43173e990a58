"""What a run logs beside its own files."""

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agents import training
from agents.callbacks import read_rows
from agents.logs import Tracker

SMALL = [
    *("--n-layer", "1", "--n-embd", "8", "--n-head", "1", "--num-envs", "4", "--max-tokens", "4"),
    *("--eval-episodes", "4", "--start-episodes", "8", "--model", "random", "--quiet"),
    *("--sentiment-model", "vader", "--learning-rate", "6e-4"),
    *("--vocabulary", "small", "--save-every", "2"),
]


def run(out, *arguments):
    assert training.main([*SMALL, "--out", str(out), *arguments]) == 0


def column(out, name):
    return [float(row[name]) for row in read_rows(out / "progress.csv")]


def test_tensorboard_shows_scalars_histograms_texts_and_arguments(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path / "run", "--updates", "3", "--tensorboard")
    log = events.EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), {"histograms": 0, "tensors": 0}
    ).Reload()
    tags = log.Tags()
    steps = [event.step for event in log.Scalars("rollout/ep_rew_mean")]
    assert steps == column(tmp_path / "run", "time/total_timesteps")
    means = column(tmp_path / "run", "rollout/ep_rew_mean")
    assert [e.value for e in log.Scalars("rollout/ep_rew_mean")] == pytest.approx(means)
    for name in ("rollout/returns", "rollout/lengths"):
        histograms = [event.histogram_value for event in log.Histograms(name)]
        assert [h.num for h in histograms] == [4, 4, 4], name
    returns = [e.histogram_value.sum / 4 for e in log.Histograms("rollout/returns")]
    assert returns == pytest.approx(means, abs=1e-6)
    texts = [
        e.tensor_proto.string_val[0].decode() for e in log.Tensors("rollout/samples/text_summary")
    ]
    assert len(texts) == 3
    rewards = [
        float(re.match(r"- \*\*([+-]\d\.\d\d)\*\* ", line)[1]) for line in texts[0].splitlines()
    ]
    assert np.mean(rewards) == pytest.approx(means[0], abs=0.01)
    assert {"csv", "hparams"}.isdisjoint(tags["scalars"])
    [data] = (log.summary_metadata["_hparams_/session_start_info"].plugin_data.content,)
    assert b"learning_rate" in data
    assert "rollout/returns" not in read_rows(tmp_path / "run" / "progress.csv")[0]


def test_tensorboard_forgets_what_is_ahead_of_the_checkpoint(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    save = training.RunFolder.save
    monkeypatch.setattr(
        training.RunFolder,
        "save",
        lambda self, model, keep: model._n_updates == 2 and save(self, model, keep),
    )
    run(out, "--updates", "3", "--tensorboard")
    monkeypatch.undo()
    assert training.main(["--out", str(out), "--resume", "--updates", "4"]) == 0
    log = events.EventAccumulator(str(out / "tensorboard")).Reload()
    steps = [event.step for event in log.Scalars("train/kl")]
    assert steps == column(out, "time/total_timesteps")
    assert len(steps) == 4


# ----------------------------------------------------------------------------------------- trackers


class Run:
    """What a tracker was given."""

    def __init__(self, **arguments):
        self.arguments, self.logged, self.finished = arguments, [], 0

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def tracker(monkeypatch):
    """A package with the interface that trackio and wandb share; its runs."""
    runs = []

    def init(**arguments):
        print("the tracker's own words")
        runs.append(Run(**arguments))
        return runs[-1]

    fake = SimpleNamespace(
        finish=lambda: runs[-1].finish(),
        init=init,
        Table=lambda **table: table,
        Histogram=np.histogram,
        runs=runs,
    )
    find_spec = importlib.util.find_spec
    for name in ("trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: True if name in ("trackio", "wandb") else find_spec(name, *rest),
    )
    return fake


def test_a_tracker_gets_the_figures_of_progress_csv(tmp_path, tracker, capsys):
    run(tmp_path / "my run", "--updates", "2", "--track", "trackio")
    [tracked] = tracker.runs
    assert tracked.arguments["config"]["learning_rate"] == 6e-4
    assert re.fullmatch("my-run-[0-9a-f]{8}", tracked.arguments["name"])
    *updates, (last, measures) = tracked.logged
    assert [step for step, _ in updates] == [1, 2]
    for (_, values), row in zip(
        updates, read_rows(tmp_path / "my run" / "progress.csv"), strict=True
    ):
        others = {"rollout/texts", "rollout/returns", "rollout/lengths"}
        assert values.keys() - others == {name for name in row if row[name]}
        assert all(float(row[name]) == values[name] for name in row)
        texts = values["rollout/texts"]
        assert texts["columns"] == ["reward", "text"]
        mean = np.mean([reward for reward, _ in texts["data"]])
        assert mean == pytest.approx(values["rollout/ep_rew_mean"])
    summary = json.loads((tmp_path / "my run" / "summary.json").read_text())
    assert last == 2
    for when in ("before", "after"):
        for name, value in summary[when].items():
            assert measures[f"{when}/{name}"] == value
    assert len(measures["samples"]["data"]) == 4
    assert tracked.finished == 1
    assert capsys.readouterr().out == ""  # --quiet


def test_a_resumed_run_is_the_same_run_of_the_tracker(tmp_path, tracker, monkeypatch):
    """Killed after update 3, behind the checkpoint of update 2."""
    out, save = tmp_path / "run", training.RunFolder.save
    monkeypatch.setattr(
        training.RunFolder,
        "save",
        lambda self, model, keep: model._n_updates == 2 and save(self, model, keep),
    )
    run(out, "--updates", "3", "--track", "wandb")
    monkeypatch.setattr(training.RunFolder, "save", save)
    assert training.main(["--out", str(out), "--resume", "--updates", "5"]) == 0
    first, second = tracker.runs
    assert first.arguments["id"] == second.arguments["id"] == first.arguments["name"]
    assert [step for step, _ in first.logged] == [1, 2, 3, 3]
    assert [step for step, _ in second.logged] == [4, 5, 5]
    assert second.arguments["resume"] == "allow"
    assert second.arguments["config"]["updates"] == 5
    assert (
        training.main(["--out", str(out), "--resume", "--updates", "6", "--track", "trackio"]) == 0
    )
    assert [step for step, _ in tracker.runs[2].logged] == [6, 6]
    assert {*json.loads((out / "tracker.json").read_text())} == {"wandb", "trackio"}


def test_a_tracker_that_fails_ends_in_one_line(tmp_path, tracker, capsys):
    def init(**_):
        raise RuntimeError("no\naccount")

    tracker.init = init
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "run", "--updates", "1", "--track", "wandb")
    assert capsys.readouterr().err == "error: --track wandb: no account\n"


@pytest.mark.parametrize("text", ["", "[]", '{"wandb": 3}', '{"wandb": {"name": "a"}}'])
def test_a_damaged_record_of_the_tracker_is_named(tmp_path, tracker, text):
    (tmp_path / "tracker.json").write_text(text)
    with pytest.raises(ValueError, match=r"tracker.json is damaged .*: remove it to begin"):
        Tracker("wandb", tmp_path, {}, 1, quiet=True)
    Tracker("wandb", tmp_path, {}, 0, quiet=True)  # a new run begins a new one


def test_trackio_keeps_a_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="the extra `track` brings it")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    code = f"from test_logs import *; run({str(tmp_path / 'run')!r}, '--updates', '2', '--track', 'trackio')"
    in_child(code)
    resume = ["--out", str(tmp_path / "run"), "--resume", "--updates", "3"]
    in_child(f"from test_logs import *; assert training.main({resume!r}) == 0")
    [database] = (tmp_path / "store").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
        configs = connection.execute("select run_name from configs").fetchall()
    logged = [(step, json.loads(metrics)) for _, step, metrics in rows]
    logged = [(step, m) for step, m in logged if "train/kl" in m or "after/kl" in m]
    assert [step for step, _ in logged] == [1, 2, 2, 3, 3]
    assert len({name for name, *_ in rows + configs}) == 1
    kl = [metrics["train/kl"] for _, metrics in logged if "train/kl" in metrics]
    assert kl == column(tmp_path / "run", "train/kl")
    assert logged[0][1]["rollout/returns"]["_type"] == "trackio.histogram"
    assert logged[0][1]["rollout/texts"]["_type"] == "trackio.table"


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `track` brings it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    code = f"from test_logs import *; run({str(tmp_path / 'run')!r}, '--updates', '2', '--track', 'wandb')"
    in_child(code)
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    name = json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]["name"]
    assert file.name == f"run-{name}.wandb"
    content = file.read_bytes()
    for text in (b"rollout/ep_rew_mean", b"after/kl", b"learning_rate", b"rollout/texts"):
        assert text in content


def in_child(code):
    """Trackers keep threads and the state of the process: each run has one of its own."""
    root = Path(__file__).parents[1]
    paths = os.pathsep.join((str(root), str(root / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
