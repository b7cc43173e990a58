"""The user's own functions, named on the command line."""

import json
import sys
from pathlib import Path

import pytest

from agents import training
from agents.__main__ import main
from agents.functions import is_function, load_function, load_terms

CODE = """
score = 1.0

def shouting(texts):
    return [2 * text.isupper() - 1.0 for text in texts]

def film(texts):
    return [0.25 * ("film" in text) for text in texts]
"""
SMALL = ["--preset", "small", "--num-envs", "8", "--eval-episodes", "8", "--start-episodes", "64"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory."""
    (tmp_path / "my_rewards.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    yield
    sys.modules.pop("my_rewards", None)


def test_names_of_functions_are_told_from_names_of_models():
    assert is_function("my_rewards:shouting")
    assert is_function("package.module:judge")
    for name in ("bundled", "user/model", "./folder", "C:\\models\\judge", "a:b:c", ":f", "m:"):
        assert not is_function(name)


def test_a_function_of_the_working_directory(module):
    assert load_function("--sentiment-model", "my_rewards:shouting")(["A", "a"]) == [1, -1]


@pytest.mark.parametrize("name", ["no_such_module:f", "my_rewards:no", "my_rewards:score"])
def test_what_is_no_function_is_refused(module, name):
    with pytest.raises(ValueError, match=f"--sentiment-model {name}: "):
        load_function("--sentiment-model", name)


@pytest.mark.parametrize("values", [["film"], ["film=f"], ["=my_rewards:film"]])
def test_a_term_is_a_name_and_a_function(module, values):
    with pytest.raises(ValueError, match="each must be NAME=module:function"):
        load_terms(values)


def test_a_terms_name_is_its_own(module):
    with pytest.raises(ValueError, match="names of their own"):
        load_terms(["film=my_rewards:film", "film=my_rewards:shouting"])


CODE_FLAGS = ["--sentiment-model", "my_rewards:shouting", "--extra-terms", "film=my_rewards:film"]


def test_a_run_with_an_own_judge_and_an_own_term(module, tmp_path, capsys):
    out = ["--out", "run", "--quiet"]
    assert training.main([*SMALL, *out, *CODE_FLAGS, "--updates", "1"]) == 0
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert {sample["sentiment"] for sample in samples} == {-1.0}
    assert all(sample["film"] == 0.25 * ("film" in sample["text"]) for sample in samples)
    assert "film" in json.loads(Path("run/summary.json").read_text())["after"]
    assert ">film<" in Path("run/report.html").read_text("utf-8")  # a row of its table
    # The record may be someone else's: its code is run only if it is named again.
    with pytest.raises(SystemExit):
        training.main([*out, "--resume", "--updates", "2"])
    error = capsys.readouterr().err
    assert "if you trust it, repeat --sentiment-model my_rewards:shouting" in error
    with pytest.raises(SystemExit):
        training.main([*out, "--resume", "--updates", "2", *CODE_FLAGS[:2]])
    assert "repeat --extra-terms film=my_rewards:film" in capsys.readouterr().err
    assert training.main([*out, "--resume", "--updates", "2", *CODE_FLAGS]) == 0
    for command in (["evaluate", "run", "--episodes", "8"], ["report", "run"], ["play", "run"]):
        with pytest.raises(SystemExit):
            main(command)
        wanted = "names code to run, my_rewards:shouting, film=my_rewards:film: add --trust"
        assert wanted in capsys.readouterr().err
    assert main(["evaluate", "run", "--episodes", "8", "--trust"]) == 0
    assert "film" in capsys.readouterr().out
    assert main(["report", "run", "--trust"]) == 0
    assert main(["generate", "run"]) == 0  # which judges nothing


def test_a_judge_that_a_flag_of_evaluate_names_is_trusted(module, capsys):
    few = ["evaluate", "reviews", "--episodes", "4"]
    assert main([*few, "--sentiment-model", "my_rewards:shouting"]) == 0
    assert "judge my_rewards:shouting" in capsys.readouterr().out
