"""The script that makes the judge: its parts, and all its stages on texts made by program."""

import importlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from text_sentiment_env.judge import PAD, UNKNOWN, Judge, SentimentNetwork, Tokenizer
from text_sentiment_env.judge import repetition as batch_repetition

FOLDER = Path(__file__).parent.parent / "examples" / "train_judge"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(FOLDER)
    script = importlib.import_module("train_judge")
    judge_data = importlib.import_module("judge_data")
    judge_embedding = importlib.import_module("judge_embedding")
    judge_hunt = importlib.import_module("judge_hunt")
    judge_report = importlib.import_module("judge_report")
    judge_texts = importlib.import_module("judge_texts")
    judge_training = importlib.import_module("judge_training")

CASES = json.loads((Path(__file__).parent / "judge_cases.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("published", "plain"),
    [
        ("do n't like it .", "Don't like it."),
        ("it 's slow -- very , very slow .", "It's slow -- very, very slow."),
        ("`` great '' , i said . good !", '"Great", I said. Good!'),
        ("a film ( of sorts )", "A film (of sorts)"),
    ],
)
def test_treebank_text_as_people_write_it(published: str, plain: str) -> None:
    assert judge_data.as_written(published) == plain


def test_sentences_of_a_review() -> None:
    review = (
        'I saw it.<br /><br />Good! "It works well," she said. '
        + "word " * 31
        + ". The end is good."
    )
    assert list(judge_data.sentences(review)) == [
        "I saw it.",
        '"It works well," she said.',
        "The end is good.",
    ]


def test_pairs_of_a_review() -> None:
    review = "It is a good film. I liked it. " + "word " * 22 + ". The end is good."
    assert list(judge_data.pairs(review)) == ["It is a good film. I liked it."]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("A great film with great music.", True),
        ("It was so, so good.", False),
        ("He is good and she is good and it is good.", True),
        ("The music is good.", False),
    ],
)
def test_repeats_itself(text: str, repeats: bool) -> None:
    assert judge_data.repeats_itself(text) is repeats


def test_the_same_word_again() -> None:
    for seed in range(20):
        text = judge_texts._fill("{good}, {good1}, {=good}, {=good1}", random.Random(seed))
        one, two, again, other = text.split(", ")
        assert (again, other) == (one, two)
        assert one != two
    assert judge_texts._blame("{very} {good1}, {=joy}, {what}") == "{very} {bad1}, {=mess}, {what}"


def test_labelled_texts_follow_the_seed_and_hold_no_test_case() -> None:
    texts = judge_texts.labelled(20_000, random.Random(0))
    assert texts == judge_texts.labelled(20_000, random.Random(0))
    cases = {t for family in CASES.values() for group in family.values() for t in group}
    normal = {Tokenizer.normalise(case).strip(" .!") for case in cases if len(case.split()) > 1}
    found = {Tokenizer.normalise(text).strip(" .!") for text, _ in texts} & normal
    assert not found
    for text, target in texts:
        assert 0 < target < 1
        assert text
        assert "{" not in text


def test_every_kind_of_salad_is_long_and_follows_the_seed() -> None:
    pool = ["The acting is really good.", "I love this old film and its music."]
    for kind in judge_texts.SALADS:
        texts = [kind(random.Random(i), pool) for i in range(50)]
        assert texts == [kind(random.Random(i), pool) for i in range(50)]
        assert min(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts) >= 3


def test_a_loss_ignores_what_no_target_is_given_for() -> None:
    network = SentimentNetwork(10, 8, 8)
    ids = torch.tensor([[2, 3, 4], [5, 6, PAD]])
    nothing = np.full(2, np.nan, np.float32)
    only = script.Samples(["", ""], nothing, np.array([1, np.nan], np.float32))
    loss = judge_training.loss_of(network, ids, only, np.arange(2), 0.4)
    loss.backward()
    assert loss > 0
    assert network.sentiment[-1].weight.grad is None or not network.sentiment[-1].weight.grad.any()
    assert network.readable[-1].weight.grad.any()


def test_repetition_by_batch_is_repetition_by_row() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 12):
        row = rng.integers(2, 6, length)
        padded = torch.tensor([[*row, *[PAD] * 3]])
        tokens, pairs, _ = batch_repetition(padded, torch.tensor([[length]]))[0].tolist()
        by_row = judge_hunt.repetition(row.tolist())
        assert tokens == pytest.approx(by_row[0])
        assert pairs == pytest.approx(by_row[1] * max(0, length - 1) / length)
    assert not batch_repetition(torch.tensor([[UNKNOWN] * 4]), torch.tensor([[4]])).any()


def test_finds_teach_by_the_start_models_opinion() -> None:
    finds = [
        judge_hunt.Find("This is a good film.", 0.9, 2.0, 4.0, 0.0, 0.0),
        judge_hunt.Find("good a good a good", 0.9, 6.5, 9.0, 0.6, 0.5),
        judge_hunt.Find("This is good it of.", 0.9, 4.0, 11.0, 0.0, 0.0),
        judge_hunt.Find("This is somewhat odd of it.", 0.9, 3.0, 9.0, 0.0, 0.0),
    ]
    assert script.read_finds(finds, usual_nll=3.0).readable.tolist()[:3] == [1, 0, 0]
    assert np.isnan(script.read_finds(finds, usual_nll=3.0).readable[3])


def test_calibration_scales_and_shifts_the_logits() -> None:
    torch.manual_seed(0)
    network, tokenizer = SentimentNetwork(1000, 8, 8), Tokenizer(range(1000))
    with torch.no_grad():
        network.sentiment[-1].weight *= 30
    rows = [(chr(97 + i) + chr(98 + i), int(i % 3 > 0)) for i in range(20)]
    ids = torch.from_numpy(judge_report.pad(tokenizer([text for text, _ in rows])))
    labels = torch.tensor([float(label) for _, label in rows])
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    with torch.no_grad():
        before = network(ids)[0]
    temperature, bias = judge_report.calibrate(network, tokenizer, rows)
    with torch.no_grad():
        after = network(ids)[0]
    torch.testing.assert_close(after, before / temperature + bias)
    assert loss(after, labels) < loss(before, labels)


def test_all_stages_run(tmp_path: Path) -> None:
    """By command, hunts included."""
    command = [sys.executable, str(FOLDER / "train_judge.py"), "--smoke"]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)}  # this checkout's
    subprocess.run([*command, "--out", str(tmp_path)], check=True, env=environment)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"hunt 1", "last hunt", "final"} <= report.keys()
    assert report["hunt 1"]["reviews"]["perplexity"] > 1
    scores = Judge(directory=tmp_path)(["a good film", "a bad film"])
    assert np.isfinite(scores).all()


def test_hunts_come_before_later_epochs_and_their_finds_stay() -> None:
    args = script.Args(epochs=9, hunt_rounds=4)
    rounds = [[*script.rounds_before(epoch, args)] for epoch in range(9)]
    assert rounds == [[], [], [], [], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]
    args = script.Args(epochs=3, hunt_rounds=0)
    assert not any([*script.rounds_before(epoch, args)] for epoch in range(3))
    with pytest.raises(SystemExit, match="2"):
        script.main(["--smoke", "--epochs", "2", "--hunt-rounds", "2"])


def test_without_salad_no_text_is_called_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    made = script.made_by_program
    monkeypatch.setattr(script, "made_by_program", lambda *a: seen.append(made(*a)) or seen[-1])
    report = script.main(["--smoke", "--no-salad", "--out", str(tmp_path)])
    assert seen
    assert all((samples.readable == 1).all() for samples in seen)
    assert "hunt 1" not in report


def learned_table(embedding: torch.nn.Module, true: torch.Tensor, rows: torch.Tensor) -> Any:
    """The table after learning the true rows of some tokens, (tokens, width)."""
    optimizer = torch.optim.Adam(embedding.parameters(), 0.01)
    for _ in range(1500):
        batch = rows[torch.randint(len(rows), (64,))]
        loss = (embedding(batch + 2) - true[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return embedding.table()[2:]


def test_a_token_that_training_never_saw_is_embedded_by_its_meaning() -> None:
    """The true rows are linear in the teacher's states."""
    torch.manual_seed(0)
    states = torch.randn(400, 20)
    true = states @ torch.randn(20, 8) / 4
    seen = np.array([10_000, 3, 2, 0] * 100)
    embedding = judge_embedding.TokenEmbedding(states, seen, 8)
    table = learned_table(embedding, true, torch.from_numpy(seen.nonzero()[0]))
    error = (table - true).norm(dim=1)
    assert error[3::4].mean() < 0.1 * true.norm(dim=1).mean(), error.view(-1, 4).mean(0)


def test_a_row_of_its_own_counts_the_more_the_more_training_sees_the_token() -> None:
    """The true rows have nothing to do with the teacher's states."""
    torch.manual_seed(0)
    states, true = torch.randn(400, 20), torch.randn(400, 8)
    seen = np.where(np.arange(400) % 2, 0, 10_000)
    embedding = judge_embedding.TokenEmbedding(states, seen, 8)
    start = embedding.table()[2:]
    table = learned_table(embedding, true, torch.arange(400))
    assert (table - true)[::2].norm() < 0.1 * true[::2].norm()
    embedding.own.weight.data[2:].normal_()
    assert torch.equal(embedding.table()[3::2], table[1::2])
    assert not torch.equal(start, table)


def test_rows_of_the_table_are_those_of_training() -> None:
    torch.manual_seed(0)
    embedding = judge_embedding.TokenEmbedding(torch.randn(30, 12), np.arange(30), 8)
    embedding.own.weight.data[1:].normal_()
    ids = torch.randint(32, (4, 5))
    torch.testing.assert_close(embedding(ids), embedding.table()[ids])
    assert not embedding.table()[PAD].any()
    torch.testing.assert_close(embedding.table()[UNKNOWN], embedding.own.weight[UNKNOWN])


def test_every_lower_case_token_has_a_row() -> None:
    counts = np.zeros(50257, int)
    counts[[11, 13, 0]] = 5, 100, 4
    chosen = judge_embedding.choose_tokens(counts)
    assert {11, 13, *judge_embedding.lower_case_tokens()} == set(chosen)
    assert chosen == sorted(chosen)


def test_an_interrupted_training_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str) -> bytes:
        out = tmp_path / folder
        script.main(["--smoke", "--threads", "1", "--out", str(out)])
        return (out / "judge.safetensors").read_bytes()

    made_by_program, calls = script.made_by_program, []

    def interrupting(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:  # for the tokens, then before each epoch
            assert (tmp_path / "interrupted" / "hunt-1.pt").exists()
            raise KeyboardInterrupt
        return made_by_program(*arguments)

    whole = run("whole")
    monkeypatch.setattr(script, "made_by_program", interrupting)
    with pytest.raises(SystemExit, match="130"):
        run("interrupted")
    assert run("interrupted") == whole


def test_stages_go_on_with_the_same_flags_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = script.Args(out=tmp_path, learning_rate=0.1)
    script.keep_arguments(args)
    script.keep_arguments(replace(args, threads=2, final=True))
    for name, value in (("learning_rate", 0.2), ("salad", False), ("data", tmp_path)):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} .* choose another --out"):
            script.keep_arguments(replace(args, **{name: value}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--epochs", "x"], "--epochs"),
        (["--device", "cuda:77"], "--device cuda:77: torch finds no such device"),
        (["--data", "nowhere"], "nowhere/sst2_dev.tsv.xz"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        script.main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
