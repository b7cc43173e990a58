"""The training script of the bundled model: texts, vocabulary, exact resume, report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from text_sentiment_env.vocabulary import END_OF_TEXT_ID, Vocabulary, gpt2_encoding

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import pretrain_gpt2
import review_texts


@pytest.mark.parametrize(
    ("review", "sentences"),
    [
        ("I liked it.<br />Mr. A. Smith was good. Bye!", ["I liked it.", "Mr. A. Smith was good."]),
        ("It  is\na good film. But why? And so on...", []),
        ("It is a thin plot. THIS IS BAD! Visit www.example.com today.", ["It is a thin plot."]),
        ('He said "this is good. The end.', []),
        ("The café is nice. Nobody knows who (or why).", ["Nobody knows who (or why)."]),
    ],
)  # fmt: skip
def test_clean_sentences(review, sentences):
    assert review_texts.clean_sentences([review, review]) == sentences


def test_as_small_is_written_with_the_small_vocabulary():
    text = review_texts.as_small("The acting is good, and I loved the story!")
    assert text == " the acting is good, and I loved the story!"
    assert Vocabulary.load("small").decode(Vocabulary.load("small").encode(text)) == text


def test_gpt2_merges_are_the_bytes_of_their_parts():
    vocabulary = Vocabulary.load("gpt2")
    merges = review_texts.gpt2_merges()
    assert len(merges) == END_OF_TEXT_ID
    assert merges[:256] == [None] * 256
    for token in (256, 5000, 50255):
        left, right = merges[token]
        assert (
            vocabulary.token_bytes[left] + vocabulary.token_bytes[right]
            == (vocabulary.token_bytes[token])
        )


def test_chosen_vocabulary_keeps_the_frequent_and_what_they_are_merged_from():
    ids = gpt2_encoding().encode_ordinary(" wonderful acting acting")
    counts = np.bincount(ids, minlength=END_OF_TEXT_ID + 1)
    small = Vocabulary.load("small").token_ids.tolist()[:-1]
    chosen = review_texts.choose_vocabulary(counts, 600, small)
    kept = set(chosen.token_ids.tolist())
    assert len(chosen) == 600
    assert kept >= {*range(256), *small, *ids, END_OF_TEXT_ID}
    merges = review_texts.gpt2_merges()
    assert all(kept.issuperset(merges[t]) for t in kept - {END_OF_TEXT_ID} if merges[t])
    with pytest.raises(ValueError, match="too small"):
        review_texts.choose_vocabulary(counts, 300, small)


def test_batches_hold_every_text_as_often_as_it_repeats_within_the_budget():
    rng = np.random.default_rng(0)
    texts = [np.zeros(n, np.int32) for n in rng.integers(1, 60, 3000)]
    corpus = review_texts.Corpus(texts, rng.integers(1, 4, 3000))
    chunks = review_texts.batches(corpus, 1024, seed=1, epoch=0)
    sizes = [len(chunk) * max(len(texts[i]) + 1 for i in chunk) for chunk in chunks]
    assert max(sizes) <= 1024
    assert np.array_equal(np.bincount(np.concatenate(chunks)), corpus.repeats)
    assert sum(len(texts[i]) + 1 for c in chunks for i in c) > 0.9 * sum(sizes)  # little padding
    again, other = (review_texts.batches(corpus, 1024, 1, epoch) for epoch in (0, 1))
    assert all(map(np.array_equal, chunks, again))
    assert not np.array_equal(np.concatenate(chunks), np.concatenate(other))


def test_texts_begin_and_end_with_end_of_text():
    inputs, targets = review_texts.collate([np.array([1, 2, 3]), np.array([4])], end=9)
    assert inputs.tolist() == [[9, 1, 2, 3], [9, 4, 9, 9]]
    assert targets.tolist() == [[1, 2, 3, 9], [4, 9, -100, -100]]
    inputs, targets = review_texts.collate([np.array([1])], end=9, rows=2)
    assert inputs.tolist() == [[9, 1], [9, 9]]
    assert targets.tolist() == [[1, 9], [-100, -100]]


def test_linear_cross_entropy_equals_torch():
    torch.manual_seed(0)
    hidden = torch.randn(140, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(0, 50, (140,))
    loss = pretrain_gpt2.LinearCrossEntropy.apply(hidden, weight, targets, 96)
    wanted = F.cross_entropy(hidden @ weight.t(), targets)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, (hidden, weight)),
        torch.autograd.grad(3 * wanted, (hidden, weight)),
    )


def test_recitation_finds_shared_runs_of_words():
    reviews = ["One two three four five<br />six seven eight nine ten. Eleven."]
    samples = [
        "So Two three four five six seven eight nine ten. What",
        "one two three four",
        "a " * 9,
    ]
    found = pretrain_gpt2.recitation(samples, reviews)
    assert found["share_sharing_8_words"] == pytest.approx(1 / 3)
    assert found["share_with_8_words"] == pytest.approx(2 / 3)
    assert found["longest_shared_runs"] == [9]


def _smoke(work, *options):
    return pretrain_gpt2.main(["--smoke", "--quiet", "--device=cpu", f"--work={work}", *options])


def test_smoke_run_reports_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    report = _smoke(tmp_path / "whole", "--seed=3")
    losses = list(report["training"]["validation"].values())
    assert losses[-1] < losses[0] - 0.5
    assert report["within_vocabulary"]["perplexity_per_word"] > 1
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["samples_small"]

    _smoke(tmp_path / "parts", "--seed=3", "--stop-at=15")
    assert not (tmp_path / "parts" / "report.json").exists()
    resumed = _smoke(tmp_path / "parts", "--seed=3")
    assert resumed["training"]["tokens"] == report["training"]["tokens"]
    whole, parts = (tmp_path / part / "model" for part in ("whole", "parts"))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert (whole / "config.json").read_bytes() == (parts / "config.json").read_bytes()


def test_another_runs_checkpoint_is_refused(tmp_path):
    _smoke(tmp_path, "--stop-at=10")
    with pytest.raises(SystemExit, match="another --work"):
        _smoke(tmp_path, "--seed=4")


def test_missing_data_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"holds no imdb_train\.jsonl"):
        pretrain_gpt2.main([f"--data={tmp_path}", f"--work={tmp_path}"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="pip install datasets"):
        pretrain_gpt2.main([f"--work={tmp_path}"])
