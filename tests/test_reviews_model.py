"""The model in the box: `GPT2.from_pretrained("reviews")` and the vocabulary of the same name."""

import itertools
import json
import random
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gpt2 import GPT2
from text_sentiment_env import load_sentiment_model
from text_sentiment_env.vocabulary import END_OF_TEXT_ID, Vocabulary, gpt2_encoding

FOLDER = Path(str(resources.files("agents"))) / "data" / "reviews"
SENTENCES = [
    " the movie is great.",
    " the acting was terrible and the story was boring.",
    " I loved this film.",
    " it is one of the best films I have watched.",
    " this was a waste of time.",
    " the script is weak, but the music is beautiful.",
    " I really enjoyed the characters and the ending!",
    " this is the worst movie of all time.",
]


@pytest.fixture(scope="module")
def gpt2():
    return GPT2.from_pretrained("reviews")


@pytest.fixture(scope="module")
def reviews():
    return Vocabulary.load("reviews")


def _read(vocabulary, text):
    """A text between end-of-texts, (1, T)."""
    return torch.tensor([[vocabulary.end_index, *vocabulary.encode(text), vocabulary.end_index]])


@torch.no_grad()
def _nats(model, ids):
    return F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()


def test_files_are_small_and_no_pickle():
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert set(files) == {"config.json", "model.safetensors"}
    assert sum(files.values()) <= 12_000_000
    header = int.from_bytes((FOLDER / "model.safetensors").read_bytes()[:8], "little")
    names = json.loads((FOLDER / "model.safetensors").read_bytes()[8 : 8 + header])
    assert {tensor["dtype"] for name, tensor in names.items() if name[0] != "_"} == {"F16"}


def test_the_models_rows_are_the_vocabulary(gpt2, reviews):
    assert gpt2.token_ids == reviews.token_ids.tolist()
    assert gpt2.end_index == reviews.end_index
    assert gpt2.config.n_positions >= 64
    assert set(reviews.token_ids.tolist()) >= set(Vocabulary.load("small").token_ids.tolist())


def test_vocabulary_is_closed_under_merges(reviews):
    ids = set(reviews.token_ids.tolist())
    assert ids >= set(range(256))
    # GPT-2's merges, by the bytes they join: token i comes of merge i - 256.
    token_bytes = Vocabulary.load("gpt2").token_bytes
    rank = {token: i for i, token in enumerate(token_bytes[:-1])}
    for i in ids - {END_OF_TEXT_ID}:
        if i >= 256:
            parts = _split(token_bytes[i], rank, below=i)
            assert len(parts) == 2
            assert {rank[part] for part in parts} <= ids


def _split(token, rank, below):
    """Byte-pair encoding with the merges before `below`, in their order."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = [a + b for a, b in itertools.pairwise(parts)]
        first = min(pairs, key=lambda pair: rank.get(pair, below), default=b"")
        if rank.get(first, below) >= below:
            return parts
        i = pairs.index(first)
        parts[i : i + 2] = [first]


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_vocabulary_encodes_every_text(text):
    reviews = Vocabulary.load("reviews")
    assert reviews.decode(reviews.encode(text)) == text


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["the", "film's", "was", "n't", "great,", "I", "one", "!", "2"])))
def test_vocabulary_encodes_as_gpt2_does_where_it_can(words):
    reviews, text = Vocabulary.load("reviews"), " ".join(words)
    ids = gpt2_encoding().encode_ordinary(text)
    if set(ids) <= set(reviews.token_ids.tolist()):
        assert reviews.token_ids[reviews.encode(text)].tolist() == ids


def test_equals_transformers_in_logits_gradients_and_greedy_text(gpt2, reviews):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    texts = ["The acting in this film is good.", "I was bored by the end of this one, frankly."]
    ids = torch.full((2, 24), reviews.end_index)
    for row, text in zip(ids, texts, strict=True):
        tokens = torch.from_numpy(reviews.encode(text))
        row[1 : len(tokens) + 1] = tokens

    ours_logits, their_logits = gpt2(ids), theirs(ids).logits
    torch.testing.assert_close(ours_logits, their_logits, atol=1e-4, rtol=1e-4)

    for logits in (ours_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    their_gradients = dict(theirs.transformer.named_parameters())
    for name, parameter in gpt2.named_parameters():
        gradient = their_gradients[name].grad
        if gradient.shape != parameter.shape or name.endswith("attn.c_proj.weight"):
            gradient = gradient.t()  # a square Conv1D is transposed too
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)
    gpt2.zero_grad()

    prompt = _read(reviews, "The acting in this film")[:, :-1]
    greedy = gpt2.generate(prompt, 20, greedy=True)[0]
    their_greedy = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )[0, prompt.shape[1] :]
    assert reviews.decode(greedy.tolist()) == reviews.decode(their_greedy.tolist())


@pytest.fixture(scope="module", params=["reviews", "small"])
def samples(request, gpt2):
    """Texts of 20 tokens at most at temperature 1, and whether each ended."""
    vocabulary = Vocabulary.load(request.param)
    model = gpt2.restrict(vocabulary.token_ids.tolist())
    start = torch.full((512, 1), vocabulary.end_index)
    new = model.generate(start, 20, generator=torch.Generator().manual_seed(0))
    ended = (new == vocabulary.end_index).any(1).tolist()
    return request.param, [vocabulary.decode(row) for row in new.tolist()], ended


def test_texts_end(samples):
    _, texts, ended = samples
    assert np.mean(ended) > 0.9
    assert len(set(texts)) > 400
    finished = [text for text, end in zip(texts, ended, strict=True) if end]
    assert np.mean([text.endswith((".", "!", "?", '"')) for text in finished]) > 0.95


def test_texts_are_of_whole_words(samples):
    # Joined or garbled words are what a small model's rare tokens make: "theBoth", "breakg".
    _, texts, _ = samples
    word = re.compile(r" ?[A-Za-z]+|[A-Z][a-z]*|'(?:s|t|re|ve|ll|d|m)|[ ]?[$]?[0-9]+|[,.;:!?%]")
    token_bytes = Vocabulary.load("gpt2").token_bytes

    def whole(text):
        tokens = [token_bytes[i].decode() for i in gpt2_encoding().encode_ordinary(text)]
        joined = any(token[0].isalnum() for token in tokens[1:])  # no space before it
        return not joined and all(word.fullmatch(token) for token in tokens)

    assert np.mean([whole(text) for text in texts]) > 0.95
    assert not whole("It is theBoth films.")
    assert not whole("So brings me to a breakg of this video.")


def test_texts_praise_and_criticise(samples):
    name, texts, _ = samples
    sentiment = load_sentiment_model("bundled")(texts)
    assert abs(np.mean(sentiment)) < (0.2 if name == "reviews" else 0.35)
    assert np.mean(sentiment > 0.5) > 0.25
    assert np.mean(sentiment < -0.5) > 0.25


def test_continues_a_prompt(gpt2, reviews):
    prompt = "The acting in this film"
    start = _read(reviews, prompt)[:, :-1].repeat(64, 1)
    new = gpt2.generate(start, 20, generator=torch.Generator().manual_seed(0))
    texts = [reviews.decode(row) for row in new.tolist()]
    # What follows belongs to the same sentence: a verb, not a capital letter.
    assert np.mean([text[:1] in " ,'." and not text[1:2].isupper() for text in texts]) > 0.9
    assert sum(word in text.split() for text in texts for word in ("is", "was", "are")) > 32


@pytest.mark.parametrize("name", ["reviews", "small"])
def test_sentences_are_likelier_than_their_shuffles(gpt2, name):
    vocabulary = Vocabulary.load(name)
    model = gpt2.restrict(vocabulary.token_ids.tolist())
    rng = random.Random(0)
    for sentence in SENTENCES:
        words = [str(vocabulary.decode([i])) for i in vocabulary.encode(sentence)]
        nats = _nats(model, _read(vocabulary, sentence))
        for _ in range(5):
            shuffled = "".join(rng.sample(words, len(words)))
            if shuffled != sentence:
                assert nats < _nats(model, _read(vocabulary, shuffled)) - 1


def test_perplexity_of_plain_sentences(gpt2, reviews):
    texts = [
        "This is one of the best movies I have ever seen.",
        "The acting is good but the story is predictable.",
        "I would not recommend this film to anyone.",
    ]
    read = [_read(reviews, text) for text in texts]
    nats = sum(_nats(gpt2, ids) for ids in read)
    assert np.exp(nats / sum(ids.shape[1] - 1 for ids in read)) < 15
