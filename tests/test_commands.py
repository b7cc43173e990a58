"""`python -m agents`: what one does with a run afterwards."""

import json
import re

import pytest
import torch

from agents import GPT2, REINFORCE
from agents.__main__ import main
from agents.commands import Play, load_models
from agents.generation import generate_text, vocabulary_of

SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "4", "--max-tokens", "5"),
    *("--eval-episodes", "8", "--model", "random", "--sentiment-model", "vader", "--quiet"),
    *("--vocabulary", "small", "--updates", "2"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        assert main(["train", *SMALL, "--out", str(folder / seed), "--seed", seed]) == 0
    return folder


def lines(capsys):
    return capsys.readouterr().out.strip().splitlines()


@pytest.mark.parametrize("kind", ["0", "0/checkpoint.zip", "0/gpt2"])
def test_generate_writes_texts_of_the_trained_model(runs, kind, capsys):
    run = str(runs / kind)
    assert main(["generate", run, "the movie", "-n", "3", "--seed", "7"]) == 0
    texts = lines(capsys)
    assert len(texts) == 3
    assert all(text.startswith("the movie") for text in texts)
    trained = GPT2.from_pretrained(runs / "0" / "gpt2")
    expected = generate_text(trained, "the movie", 3, seed=7, max_tokens=20)
    assert texts == [text.strip() for text in expected]


def test_generated_texts_are_those_of_the_policy(runs):
    model = REINFORCE.load(runs / "0")
    texts = model.generate_text("the movie is", n=4, seed=3, max_tokens=2)
    assert texts == generate_text(model.policy.gpt2, "the movie is", 4, seed=3, max_tokens=2)
    assert all(text.startswith(" the movie is") for text in texts)
    assert model.generate_text(greedy=True) == model.generate_text(greedy=True)
    with pytest.raises(ValueError, match="outside this vocabulary"):
        model.generate_text("screenplay")
    with pytest.raises(ValueError, match=r"prompt has 9 tokens, the model reads 5"):
        model.generate_text("the movie is good the movie is good.")
    with pytest.raises(ValueError, match="n=0 and max_tokens=20 must be at least 1"):
        model.generate_text(n=0)


def test_a_model_whose_texts_have_no_end_is_refused():
    gpt2 = GPT2.from_pretrained("reviews").restrict([50256, 3, 5])
    with pytest.raises(ValueError, match="do not end with"):
        vocabulary_of(gpt2)


def test_evaluate_says_what_the_run_said(runs, capsys, tmp_path):
    """The same texts as in the run's own evaluation, by the same seed."""
    file = tmp_path / "measures.json"
    arguments = ["--episodes", "64", "--show", "2", "--json", str(file)]
    assert main(["evaluate", str(runs / "0"), *arguments]) == 0
    out = capsys.readouterr().out
    measures = json.loads(file.read_text())
    assert f"{measures['reward']:.3f}" in out
    assert len(measures["samples"]) == 64
    best = max(sample["reward"] for sample in measures["samples"])
    assert f"{best:+.2f}" in out
    assert re.search(r"sentiment\s*│.*±", out), "an interval"
    _, reference, arguments = load_models(str(runs / "0"))
    assert arguments.max_tokens == 5
    assert arguments.sentiment_model == "vader"
    assert not torch.equal(reference.wte.weight, load_models(str(runs / "0"))[0].wte.weight)


def test_compare_shows_runs_and_their_mean(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    figure = tmp_path / "a.png"
    folders = [str(runs / "0"), str(runs / "1")]
    assert main(["compare", *folders, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    after = [json.loads((runs / n / "summary.json").read_text())["after"] for n in "01"]
    for measures in after:
        assert f"{measures['reward']:.3f}" in out
    assert f"{(after[0]['reward'] + after[1]['reward']) / 2:.3f} ± " in out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_watch_shows_where_a_run_stands(runs, capsys):
    assert main(["watch", str(runs / "0"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "update 2" in out
    assert "reward" in out


def test_report_draws_the_page_again(runs, capsys):
    page = runs / "1" / "report.html"
    drawn = page.read_bytes()
    page.unlink()
    assert main(["report", str(runs / "1")]) == 0
    assert lines(capsys) == [str(page)]
    assert len(page.read_bytes()) == len(drawn)


def test_a_text_is_written_by_hand(runs, capsys):
    answers = iter(["the movie", "zebra", "1", ""])
    Play(str(runs / "0"), choices=3)(lambda prompt: next(answers))
    out = capsys.readouterr().out
    assert "outside this vocabulary" in out  # of zebra, and the game goes on
    assert re.search(r"the movie .*\nreward [+-]\d\.\d+", out)
    assert "length 3.000" in out


def test_info_is_what_a_bug_report_needs(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("text-sentiment-env", "Python", "gymnasium", "torch", "CUDA", "TextSentiment-v0"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "./nothing"], "error: ./nothing is no directory"),
        (["generate", "reviews", "-n", "0"], "error: n=0 and max_tokens=20 must be at least 1"),
        (["evaluate", "reviews", "--episodes", "0"], "error: --episodes 0: must be at least 1"),
        (["compare", "nothing"], "error: nothing holds no summary.json"),
        (["report", "nothing"], "error: nothing holds no summary.json"),
        (["watch", "nothing"], "error: nothing is no folder of a run"),
        (["sing"], "error: "),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(message)
    assert "\n" not in error
