import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from agents import GPT2, REINFORCE
from agents.runs import RunFolder
from examples import train_reinforce

ROOT = Path(__file__).parents[1]

SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "8", "--max-tokens", "6"),
    *("--eval-episodes", "16", "--model", "random", "--sentiment-model", "vader", "--quiet"),
    *("--vocabulary", "small", "--kl-coef", "0.01", "--lr-decay", "linear"),
]


def run(out, *arguments):
    return train_reinforce.main([*SMALL, "--out", str(out), *arguments])


def rows(out):
    with open(out / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def tensors(out):
    with zipfile.ZipFile(out / "checkpoint.zip") as archive:
        return {n: archive.read(n) for n in archive.namelist() if n.endswith(".safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(out, "--updates", "4", "--save-every", "3") == 0
    return out


def test_writes_everything(finished):
    assert {
        "arguments.json", "checkpoint.zip", "checkpoint-1.zip", "gpt2", "learning_curves.png", "progress.csv", "samples.md",
        "summary.json",
    } == {p.name for p in finished.iterdir()}  # fmt: skip
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["updates"] == 4
    assert summary["episodes"] == 32
    assert summary["tokens"] == sum(8 * float(r["rollout/ep_len_mean"]) for r in rows(finished))
    measures = {
        "reward", "sentiment", "length", "end_rate", "entropy", "kl", "distinct_1", "distinct_2",
        "perplexity", "distinct_texts",
    }  # fmt: skip
    for when in ("before", "after"):
        assert measures <= summary[when].keys()
    assert summary["before"]["kl"] == 0
    assert summary["after"]["kl"] > 0
    assert summary["arguments"]["seed"] == 0
    assert len(rows(finished)) == 4
    assert (finished / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    table = (finished / "samples.md").read_text().splitlines()
    assert len([line for line in table if line.startswith("| +") or line.startswith("| -")]) == 16


def test_the_saved_model_is_the_policy(finished):
    gpt2 = GPT2.from_pretrained(finished / "gpt2")
    policy = REINFORCE.load(finished / "checkpoint.zip").policy
    assert torch.equal(gpt2.wte.weight, policy.gpt2.wte.weight)
    assert gpt2.token_ids == list(policy.config.token_ids)


def test_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch):
    """Killed behind the checkpoint of update 3 with a log that is further on."""
    save = RunFolder.save
    monkeypatch.setattr(
        RunFolder,
        "save",
        lambda self, model, keep: model._n_updates == 3 and save(self, model, keep),
    )
    assert run(tmp_path / "run", "--updates", "4", "--save-every", "3") == 0
    monkeypatch.undo()
    assert len(rows(tmp_path / "run")) == 4
    assert train_reinforce.main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert tensors(tmp_path / "run") == tensors(finished)
    timeless = [
        [{k: v for k, v in row.items() if "time/" not in k or "total" in k} for row in rows(out)]
        for out in (tmp_path / "run", finished)
    ]
    assert timeless[0] == timeless[1]
    summaries = [
        json.loads((out / "summary.json").read_text()) for out in (tmp_path / "run", finished)
    ]
    for when in ("before", "after"):
        assert summaries[0][when] == summaries[1][when]


def test_a_finished_run_can_be_prolonged(tmp_path):
    assert run(tmp_path / "run", "--updates", "1") == 0
    out = str(tmp_path / "run")
    assert train_reinforce.main(["--out", out, "--resume", "--updates", "3"]) == 0
    assert [r["train/n_updates"] for r in rows(tmp_path / "run")] == ["1", "2", "3"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 3


def test_an_existing_run_is_not_overwritten(finished, capsys):
    with pytest.raises(SystemExit):
        run(finished)
    assert "add --resume to go on" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "nothing", "--resume")
    assert "holds no run with a checkpoint" in capsys.readouterr().err


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/reviews-seed0").mkdir(parents=True)
    assert train_reinforce.parse_arguments([]).run.out == os.path.join("runs", "reviews-seed0-2")


def test_interrupt_saves_and_exits_cleanly(tmp_path):
    out = tmp_path / "run"
    command = [
        *(sys.executable, str(ROOT / "examples/train_reinforce.py"), *SMALL, "--kl-coef", "0"),
        *("--out", str(out), "--updates", "100000", "--save-every", "100000"),
    ]
    process = subprocess.Popen(
        [c for c in command if c != "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("update"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopping after this update" in output
    assert REINFORCE.load(out / "checkpoint.zip")._n_updates == len(rows(out)) > 0
    assert json.loads((out / "summary.json").read_text())["updates"] == len(rows(out))


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    train = REINFORCE.train

    def poisoned(self, episodes):
        if self._n_updates == 2:
            episodes.rewards[0] = float("nan")
        train(self, episodes)

    monkeypatch.setattr(REINFORCE, "train", poisoned)
    assert run(out, "--updates", "5", "--save-every", "1") == 1
    assert "update 3: the policy_gradient_loss is nan" in capsys.readouterr().err
    model = REINFORCE.load(out / "checkpoint.zip")
    assert model._n_updates == 2
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_gpt2_preset_on_local_models(tmp_path):
    """The real thing's flags, with a tiny GPT-2 of the full vocabulary in place of the hub's."""
    from agents import GPT2Config

    torch.manual_seed(0)
    GPT2(GPT2Config(n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    out = tmp_path / "run"
    arguments = [
        "--preset",
        "gpt2",
        "--model",
        str(tmp_path / "gpt2"),
        "--sentiment-model",
        "vader",
    ]
    small = [
        "--num-envs",
        "8",
        "--updates",
        "2",
        "--eval-episodes",
        "8",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert train_reinforce.main([*arguments, *small, "--out", str(out)]) == 0
    arguments = json.loads((out / "arguments.json").read_text())
    assert arguments["vocabulary"] == "gpt2"
    assert arguments["prompts"].endswith("review_openings.txt")
    assert arguments["kl_coef"] > 0


def test_every_flag_has_help():
    out = subprocess.run(
        [sys.executable, str(ROOT / "examples/train_reinforce.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    for name in REINFORCE.ARGUMENTS:
        assert f"--{name.replace('_', '-')}" in out


def test_openings_fit_gpt2_and_are_distinct():
    lines = (ROOT / "agents/data/review_openings.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) >= 90
