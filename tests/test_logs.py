"""What a run logs beside its own files."""

import re

import numpy as np
import pytest

from agents import training
from agents.callbacks import read_rows

SMALL = [
    *("--n-layer", "1", "--n-embd", "8", "--n-head", "1", "--num-envs", "4", "--max-tokens", "4"),
    *("--eval-episodes", "4", "--model", "random", "--sentiment-model", "vader", "--quiet"),
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
