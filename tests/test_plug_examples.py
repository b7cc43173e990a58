"""The programs that plug other people's agents in, with tiny budgets; and the comparison of agents."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def test_ppo_in_one_file_learns(capsys):
    import ppo_cleanrl

    arguments = ["--total-timesteps", "6000", "--max-tokens", "6", "--num-steps", "32"]
    reward = ppo_cleanrl.main([*arguments, "--learning-rate", "3e-3"])
    printed = capsys.readouterr().out
    first = float(printed.split("reward ")[1].split()[0])
    assert reward > first + 0.2
    assert "steps/s" in printed


def test_ppo_in_one_file_refuses_less_than_a_batch(capsys):
    import ppo_cleanrl

    with pytest.raises(SystemExit):
        ppo_cleanrl.main(["--total-timesteps", "100"])
    assert "--total-timesteps 100 is less than one batch" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("ppo",), ("a2c", "--policy", "gpt2"), ("dqn",)])
def test_sb3(arguments, capsys, tmp_path):
    pytest.importorskip("sb3_contrib")
    import plug_sb3

    plug_sb3.main([*arguments, "--tokens", "1500", "--save", str(tmp_path / "agent")])
    printed = capsys.readouterr().out
    assert "mean reward of 100 fresh texts" in printed
    assert ("not read again" in printed) == ("gpt2" in arguments)
    assert (tmp_path / "agent.zip").exists()


def test_sb3_refuses_gpt2_in_dqn(capsys):
    pytest.importorskip("sb3_contrib")
    import plug_sb3

    with pytest.raises(SystemExit):
        plug_sb3.main(["dqn", "--policy", "gpt2"])
    assert "use a2c or ppo" in capsys.readouterr().err


def test_torchrl(capsys):
    pytest.importorskip("torchrl")
    import plug_torchrl

    reward = plug_torchrl.main(["--updates", "2", "--num-envs", "4", "--steps", "40"])
    assert -1.5 < reward < 1
    assert "update   2" in capsys.readouterr().out


@pytest.mark.slow
def test_rllib():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    import plug_rllib

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


@pytest.fixture(scope="module")
def compare():
    pytest.importorskip("sb3_contrib")
    import compare_agents

    return compare_agents


def test_compares_and_goes_on(compare, tmp_path, capsys):
    few = [*SMALL, "--out", str(tmp_path), "--agents", "random", "reinforce-rloo", "a2c-mlp"]
    assert compare.main([*few, "--seeds", "1"]) == 0
    (tmp_path / "random-seed0.json").unlink()
    first = (tmp_path / "a2c-mlp-seed0.json").read_bytes()
    capsys.readouterr()
    assert compare.main([*few, "--seeds", "1"]) == 0
    assert "1/1 random-seed0" in capsys.readouterr().out  # the others were kept
    assert (tmp_path / "a2c-mlp-seed0.json").read_bytes() == first
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["agent"] for row in results["table"]} == {"random", "reinforce-rloo", "a2c-mlp"}
    assert all(result["tokens"] >= 400 for result in results["runs"])
    assert len((tmp_path / "results.md").read_text().splitlines()) == 3 + 4
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="other settings"):
        compare.main([*few, "--tokens", "500"])


@pytest.mark.parametrize(
    "name", ["reinforce-value", "a2c-gpt2", "ppo-mlp", "ppo-gpt2", "maskable-ppo", "dqn"]
)
def test_every_agent_runs(compare, name, monkeypatch):
    arguments = compare.AGENTS[name][1]
    if "n_epochs" in arguments:
        small = arguments | {"n_steps": 16, "batch_size": 128, "n_epochs": 1}
        monkeypatch.setitem(compare.AGENTS, name, (compare.AGENTS[name][0], small))
    settings = {"tokens": 300, "eval_episodes": 4, "sentiment_model": "vader"}
    result = compare.run(name, 0, settings | {"pretrained": None, "learning_rate": None})
    assert result["error"] is None
    assert result["parameters"] > 50_000
    assert result["tokens"] >= 300


def test_failures_are_reported(compare):
    settings = {"tokens": 300, "eval_episodes": 4, "sentiment_model": "./nowhere"}
    lost = compare.run("ppo-mlp", 0, settings | {"pretrained": None, "learning_rate": None})
    assert "FileNotFoundError" in lost["error"]
    measures = {"sentiment": 0.5, "length": 9, "distinct_texts": 1, "tokens": 300}
    measures |= {"seconds": 2, "cpu_seconds": 1}
    runs = [lost] + [
        {"agent": "ppo-mlp", "seed": seed, "reward": reward, "error": None} | measures
        for seed, reward in ((1, 0.2), (2, 0.8))
    ]
    [row] = compare.summarise(runs, 0.5)
    assert (row["seeds"], row["failed"], row["without_reward"]) == (3, 2, 1)
    assert row["reward"] == pytest.approx(0.5)
    assert row["standard_error"] == pytest.approx(0.3)


def test_only_gpt2s_have_a_pretrained_start(compare, capsys):
    with pytest.raises(SystemExit):
        compare.parse_arguments(["--pretrained", "reviews", "--agents", "dqn"])
    assert "--pretrained is for GPT-2s" in capsys.readouterr().err
