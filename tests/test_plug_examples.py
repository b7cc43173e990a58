"""The programs that plug other people's agents in, with tiny budgets; and the comparison of agents."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from agents.__main__ import main as agents
from agents.commands import load_models
from agents.generation import vocabulary_of
from examples import (
    compare_agents,
    plug_rllib,
    plug_sb3,
    plug_skrl,
    plug_tianshou,
    plug_torchrl,
    plug_trl,
    ppo_cleanrl,
)
from text_sentiment_env import Vocabulary


def test_ppo_in_one_file_learns(capsys):
    arguments = ["--total-timesteps", "6000", "--max-tokens", "6", "--num-steps", "32"]
    reward = ppo_cleanrl.main([*arguments, "--learning-rate", "3e-3"])
    printed = capsys.readouterr().out
    first = float(printed.split("reward ")[1].split()[0])
    assert reward > first + 0.2
    assert "steps/s" in printed


def test_ppo_in_one_file_before_any_text_has_ended(capsys):
    arguments = ["--total-timesteps", "16", "--num-envs", "1", "--num-steps", "16"]
    assert np.isnan(ppo_cleanrl.main([*arguments, "--num-minibatches", "4", "--max-tokens", "200"]))
    assert "reward none yet" in capsys.readouterr().out


def test_ppo_in_one_file_refuses_less_than_a_batch(capsys):
    with pytest.raises(SystemExit):
        ppo_cleanrl.main(["--total-timesteps", "100"])
    assert "--total-timesteps 100 is less than one batch" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("ppo",), ("a2c", "--policy", "gpt2"), ("dqn",)])
def test_sb3(arguments, capsys, tmp_path):
    plug_sb3.main([*arguments, "--tokens", "1500", "--save", str(tmp_path / "agent")])
    printed = capsys.readouterr().out
    assert "mean reward of 100 fresh texts" in printed
    assert ("not read again" in printed) == ("gpt2" in arguments)
    assert (tmp_path / "agent.zip").exists()


def test_a_saved_gpt2_of_sb3_is_written_with(capsys, tmp_path):
    file = tmp_path / "ppo.zip"
    plug_sb3.main(["ppo", "--policy", "gpt2", "--tokens", "100", "--save", str(file)])
    vocabulary = vocabulary_of(load_models(str(file), trust=True).gpt2)
    assert vocabulary.token_ids.tolist() == Vocabulary.load("small").token_ids.tolist()
    capsys.readouterr()
    assert agents(["generate", str(file), "the movie", "-n", "2", "--trust"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_sb3_refuses_gpt2_in_dqn(capsys):
    with pytest.raises(SystemExit):
        plug_sb3.main(["dqn", "--policy", "gpt2"])
    assert "use a2c or ppo" in capsys.readouterr().err


def test_torchrl(capsys):
    pytest.importorskip("torchrl")
    reward = plug_torchrl.main(["--updates", "2", "--num-envs", "4", "--steps", "40"])
    assert -1.5 < reward < 1
    assert "update   2" in capsys.readouterr().out


@pytest.mark.slow
def test_rllib():
    pytest.importorskip("ray")
    assert -1.5 < plug_rllib.main(["--iterations", "2", "--batch-size", "400"]) < 1


# ------------------------------------------------------------------------------ compare_agents.py

SMALL = [
    "--tokens",
    "400",
    "--eval-episodes",
    "4",
    "--processes",
    "1",
    "--sentiment-model",
    "vader",
]


def test_compares_and_goes_on(tmp_path, capsys):
    few = [*SMALL, "--out", str(tmp_path), "--agents", "random", "reinforce-rloo", "a2c-mlp"]
    assert compare_agents.main([*few, "--seeds", "1"]) == 0
    (tmp_path / "random-seed0.json").unlink()
    first = (tmp_path / "a2c-mlp-seed0.json").read_bytes()
    capsys.readouterr()
    assert compare_agents.main([*few, "--seeds", "1"]) == 0
    assert "1/1 random-seed0" in capsys.readouterr().out  # the others were kept
    assert (tmp_path / "a2c-mlp-seed0.json").read_bytes() == first
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["agent"] for row in results["table"]} == {"random", "reinforce-rloo", "a2c-mlp"}
    assert all(result["tokens"] >= 400 for result in results["runs"])
    assert len((tmp_path / "results.md").read_text().splitlines()) == 3 + 4
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="2"):
        compare_agents.main([*few, "--tokens", "500"])
    assert "holds runs of other settings" in capsys.readouterr().err


def test_the_flag_names_every_agent():
    assert get_args(compare_agents.AgentName) == tuple(compare_agents.AGENTS)


@pytest.mark.parametrize(
    "name", ["reinforce-value", "a2c-gpt2", "ppo-mlp", "ppo-gpt2", "maskable-ppo", "dqn"]
)
def test_every_agent_runs(name, monkeypatch):
    arguments = compare_agents.AGENTS[name][1]
    if "n_epochs" in arguments:
        small = arguments | {"n_steps": 16, "batch_size": 128, "n_epochs": 1}
        monkeypatch.setitem(compare_agents.AGENTS, name, (compare_agents.AGENTS[name][0], small))
    settings = {"tokens": 300, "eval_episodes": 4, "sentiment_model": "vader"}
    result = compare_agents.run(name, 0, settings | {"pretrained": None, "learning_rate": None})
    assert result["error"] is None
    assert result["parameters"] > 50_000
    assert result["tokens"] >= 300


def test_a_learning_rate_of_zero_is_one():
    env = compare_agents.make_env({"sentiment_model": "vader"}, 2)
    for given, rate in ((0.0, 0.0), (None, compare_agents.AGENTS["ppo-mlp"][1]["learning_rate"])):
        settings = {"learning_rate": given, "pretrained": None}
        assert compare_agents.make_agent("ppo-mlp", env, 0, settings).learning_rate == rate


def test_failures_are_reported():
    settings = {"tokens": 300, "eval_episodes": 4, "sentiment_model": "./nowhere"}
    lost = compare_agents.run("ppo-mlp", 0, settings | {"pretrained": None, "learning_rate": None})
    assert "FileNotFoundError" in lost["error"]
    measures = {"sentiment": 0.5, "length": 9, "distinct_texts": 1, "tokens": 300}
    measures |= {"seconds": 2, "cpu_seconds": 1}
    runs = [lost] + [
        {"agent": "ppo-mlp", "seed": seed, "reward": reward, "error": None} | measures
        for seed, reward in ((1, 0.2), (2, 0.8))
    ]
    [row] = compare_agents.summarise(runs, 0.5)
    assert (row["seeds"], row["failed"], row["without_reward"]) == (3, 2, 1)
    assert row["reward"] == pytest.approx(0.5)
    assert row["standard_error"] == pytest.approx(0.3)


def test_only_gpt2s_have_a_pretrained_start(capsys):
    with pytest.raises(SystemExit):
        compare_agents.main(["--pretrained", "reviews", "--agents", "dqn"])
    assert "--pretrained is for GPT-2s" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- command lines

ROOT = Path(__file__).parents[1]
EXTRAS = (
    *("sb3_contrib", "torchrl", "tensordict", "ray", "tensorboard", "datasets", "pandas", "trl"),
    *("accelerate", "skrl", "tianshou", "openenv", "uvicorn", "fastapi", "rl_zoo3", "sbx"),
    *("trackio", "wandb", "nbclient", "nbformat", "hypothesis", "pytest"),
)
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*(ROOT / "examples").glob("*.py"), ROOT / "examples/train_judge/train_judge.py"]
    if "__main__" in path.read_text("utf-8")  # rl-zoo3's hyperparameters are no program
    if path.name not in ("pretrain_gpt2.py", "review_texts.py")
)


def run_without_extras(script, *arguments):
    """Runs a script as if no extra were installed."""
    code = (
        "import runpy, sys;"
        f"sys.modules.update(dict.fromkeys({EXTRAS}));"  # None: importing it raises
        f"sys.path[:0] = [{str(ROOT)!r}, {str((ROOT / script).parent)!r}];"
        f"sys.argv = {[script, *arguments]!r};"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_extra(script):
    done = run_without_extras(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
    flags = [line for line in done.stdout.splitlines() if line.startswith("│ --")]
    assert flags


@pytest.mark.parametrize(
    ("script", "arguments", "missing"),
    [
        ("plug_sb3.py", ["trpo"], "sb3_contrib"),
        ("plug_torchrl.py", [], "tensordict"),
        ("plug_rllib.py", [], "ray"),
    ],
)
def test_a_missing_extra_is_named(script, arguments, missing):
    done = run_without_extras(f"examples/{script}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}")
    assert '".[plug]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (ppo_cleanrl.main, ["--num-envs", "0"], "--num-envs 0: must be at least 1"),
        (
            ppo_cleanrl.main,
            ["--num-envs", "1", "--num-steps", "8"],
            "--num-minibatches 8: too many",
        ),
        (ppo_cleanrl.main, ["--sentiment-model", "./nowhere"], "'./nowhere' is not a directory"),
        (plug_sb3.main, ["nothing"], "'nothing'"),
        (plug_sb3.main, ["ppo", "--tokens", "1e3"], "--tokens"),
        (plug_torchrl.main, ["--steps", "-1"], "--steps -1: must be at least 1"),
        (plug_rllib.main, ["--unknown", "1"], "--unknown"),
        (plug_trl.main, ["--updates", "0"], "--updates 0: must be at least 1"),
        (plug_skrl.main, ["--steps", "0"], "--steps 0: must be at least 1"),
        (plug_tianshou.main, ["--epochs", "0"], "--epochs 0: must be at least 1"),
        (compare_agents.main, ["--agents", "nobody"], "'nobody'"),
        (compare_agents.main, ["--seeds", "0"], "--seeds 0: must be at least 1"),
    ],
)
def test_bad_input_ends_in_one_line(main, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
