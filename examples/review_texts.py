"""Film reviews as training texts for a small GPT-2: sentences, a vocabulary, batches."""

from __future__ import annotations

import heapq
import itertools
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from text_sentiment_env.vocabulary import END_OF_TEXT_ID, Vocabulary, gpt2_encoding

IGNORED = -100  # target of a padded position, as in torch's cross entropy


# 1. Texts ----------------------------------------------------------------------------------------

BREAK = re.compile(r"(?:<br\s*/?>|\n)+")
_TITLES = (
    "Mr",
    "Mrs",
    "Ms",
    "Dr",
    "Prof",
    "St",
    "Jr",
    "Sr",
    "vs",
    "etc",
    "Lt",
    "Sgt",
    "Capt",
    "No",
)
_NOT_ITS_END = "".join(rf"(?<!\b{title}\.)" for title in (*_TITLES, "[A-Z]"))
_NEXT_SENTENCE = re.compile(rf"(?<=[.!?]){_NOT_ITS_END}\s+(?=[A-Z\"'(])")
_PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,.;:!?'\"()&$%/-]*[.!?]")
_CUT = re.compile(rf"\b(?:{'|'.join(_TITLES)}|[A-Z])\.$")
_UNWANTED = re.compile(r"http|www|\.\.|!!|\?\?")


def is_clean(sentence: str) -> bool:
    """Whether this is a plain sentence of 3 to 30 words, whole as far as one can tell."""
    return (
        3 <= sentence.count(" ") + 1 <= 30
        and _PLAIN.fullmatch(sentence) is not None
        and not _CUT.search(sentence)
        and not _UNWANTED.search(sentence)
        and sentence.count('"') % 2 == 0
        and sentence.count("(") == sentence.count(")")
        and 4 * sum(char.isupper() for char in sentence) <= len(sentence)  # no shouting
    )


def paragraphs(review: str) -> list[list[str]]:
    """A review's sentences, paragraph by paragraph."""
    review = review.replace("’", "'").replace("`", "'")
    return [_NEXT_SENTENCE.split(" ".join(part.split())) for part in BREAK.split(review)]


def clean_sentences(reviews: Iterable[str]) -> list[str]:
    """The distinct clean sentences of the reviews, in order."""
    return list(
        dict.fromkeys(s for r in reviews for part in paragraphs(r) for s in part if is_clean(s))
    )


def sentence_pairs(reviews: Iterable[str]) -> list[str]:
    """Pairs of clean sentences that follow each other: what fills the later positions."""
    return [
        f"{first} {second}"
        for review in reviews
        for part in paragraphs(review)
        for first, second in zip(part[:-1:2], part[1::2], strict=False)
        if is_clean(first) and is_clean(second)
    ]


def as_small(sentence: str) -> str:
    """The sentence as word vocabularies write it: lower case behind a leading space."""
    return " " + re.sub(r"\bi\b", "I", sentence.lower())


def read_reviews(folder: Path | None, split: str) -> list[str]:
    """Reviews of `split` "train", "unsup" or "test", from a folder or the Hugging Face hub."""
    if folder is None:
        try:
            import datasets
        except ImportError as error:
            raise SystemExit(
                "--data is not given and the package `datasets` is missing: pass --data DIR with"
                " imdb_train.jsonl[.xz], imdb_unsup… and imdb_test…, or pip install datasets"
            ) from error
        name = {"unsup": "unsupervised"}.get(split, split)
        return list(datasets.load_dataset("stanfordnlp/imdb", split=name)["text"])
    for file in (folder / f"imdb_{split}.jsonl.xz", folder / f"imdb_{split}.jsonl"):
        if file.is_file():
            with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf8") as f:
                return [json.loads(line)["text"] for line in f]
    raise SystemExit(f"--data {folder} holds no imdb_{split}.jsonl.xz or .jsonl")


def made_up_reviews(n: int, seed: int) -> list[str]:
    """Reviews from a grammar, for `--smoke` and the tests."""
    rng = random.Random(seed)
    nouns, verbs = ["movie", "film", "story", "acting", "cast", "plot"], ["is", "was"]
    words = ["good", "bad", "great", "awful", "charming", "dull", "funny", "Shakespearean"]

    def sentence() -> str:
        return (
            f"{rng.choice(['The', 'This'])} {rng.choice(nouns)} {rng.choice(verbs)}"
            f" {rng.choice(['', 'very ', 'not '])}{rng.choice(words)}{rng.choice('.!')}"
        )

    return [" ".join(sentence() for _ in range(rng.randint(2, 6))) for _ in range(n)]


# 2. Vocabulary -----------------------------------------------------------------------------------


def gpt2_merges() -> list[tuple[int, int] | None]:
    """For each GPT-2 token the two tokens that its merge joins; None for the 256 bytes."""
    file = resources.files("text_sentiment_env") / "data" / "vocab.bpe"
    # The file writes bytes as printable characters: themselves, and from chr(256) on for the rest.
    names = [chr(b) for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    names += [chr(256 + i) for i in range(256 - len(names))]
    merges: list[tuple[int, int] | None] = [None] * 256
    id_of = {name: i for i, name in enumerate(names)}
    for line in file.read_text("utf-8").splitlines()[1:]:  # line 1 is the version
        left, right = line.split(" ")
        id_of[left + right] = len(merges)
        merges.append((id_of[left], id_of[right]))
    return merges


def choose_vocabulary(counts: np.ndarray, size: int, keep: Iterable[int]) -> Vocabulary:
    """The `size` tokens that remain when the rarest are given up one by one.

    A token that is given up is written as the two that its merge joins, which inherit its count,
    and only tokens that no other is merged from are given up. So the rest is closed under merges:
    with all 256 bytes in it, it encodes every text, and as GPT-2 does where it has GPT-2's tokens.

    Args:
        counts: how often each of GPT-2's tokens occurs in the texts, (50257,).
        size: number of tokens, end-of-text included.
        keep: tokens to keep however rare (and with them what they are merged from).
    """
    merges, kept = gpt2_merges(), set(keep)
    counts, uses = counts.astype(np.int64), Counter(i for pair in merges if pair for i in pair)
    leaves = [(int(counts[i]), i) for i in range(256, len(merges)) if not uses[i]]
    heapq.heapify(leaves)
    remaining = set(range(len(merges)))
    while len(remaining) + 1 > size:  # + 1: end-of-text, which is no merge
        if not leaves:
            raise ValueError(
                f"vocabulary size {size} is too small for the bytes and tokens to keep"
            )
        _, token = heapq.heappop(leaves)
        pair = merges[token]
        if pair is None or token in kept:
            continue
        remaining.remove(token)
        for part in pair:
            counts[part] += counts[token]
        for part in set(pair):
            uses[part] -= pair.count(part)
            if not uses[part]:
                heapq.heappush(leaves, (int(counts[part]), part))
    return Vocabulary([*sorted(remaining), END_OF_TEXT_ID])


def encode_gpt2(texts: Sequence[str]) -> list[list[int]]:
    """GPT-2's own token ids of each text."""
    return gpt2_encoding().encode_ordinary_batch(list(texts), num_threads=1)


def count_tokens(gpt2_ids: Iterable[Sequence[int]]) -> np.ndarray:
    """How often each of GPT-2's tokens occurs, (50257,)."""
    flat = np.fromiter(itertools.chain.from_iterable(gpt2_ids), np.int64)
    return np.bincount(flat, minlength=END_OF_TEXT_ID + 1)


# 3. Batches --------------------------------------------------------------------------------------


class Corpus(NamedTuple):
    """What is trained on: texts as rows of the vocabulary, and how often each comes in an epoch."""

    texts: list[np.ndarray]
    repeats: np.ndarray


def make_corpus(
    sentences: Sequence[str],
    gpt2_ids: Sequence[Sequence[int]],
    pairs: Sequence[str],
    vocabulary: Vocabulary,
    n_positions: int,
) -> Corpus:
    """Encodes and weights the training texts: sentences (their GPT-2 ids at hand) and pairs.

    Sentences of known words come most often, short ones above all: the model is for texts of about
    twenty tokens, and spelled-out names are what a small model gets wrong. A sixth of the texts
    has the form in which word vocabularies write, rich in the words of the vocabulary "small".
    """
    small, known = token_ids("small"), set(vocabulary.token_ids.tolist())
    texts: list[np.ndarray] = []
    repeats: list[int] = []

    def add(text: str, count: int) -> None:
        ids = vocabulary.encode(text)
        if count and len(ids) < n_positions:
            texts.append(ids.astype(np.int32))
            repeats.append(count)

    for index, (text, ids) in enumerate(zip(sentences, gpt2_ids, strict=True)):
        unknown = sum(i not in known for i in ids)
        if unknown == 0:
            add(text, 3 if len(ids) <= 20 else 1)
            words = encode_gpt2([as_small(text)])[0]
            outside = sum(i not in small for i in words)
            few = {0: 10, 1: 6, 2: 4, 3: 2}.get(outside, int(index % 8 == 0))
            add(as_small(text), few if len(words) > 3 * outside or outside > 3 else few // 2)
        elif unknown == 1 and len(ids) <= 24:
            add(text, 1)
    for text, ids in zip(pairs, encode_gpt2(pairs), strict=True):
        add(text, int(len(ids) > 24 and known.issuperset(ids)))
    return Corpus(texts, np.array(repeats))


def token_ids(name: str) -> set[int]:
    """The GPT-2 tokens of a named vocabulary."""
    return set(Vocabulary.load(name).token_ids.tolist())


def batches(corpus: Corpus, tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The texts of each batch of one epoch: at most `tokens` positions, padding included.

    Each text is a row of its own, at the positions where it will be generated; texts of like
    length go together, so that little is padding.
    """
    rng = np.random.default_rng([seed, epoch])
    lengths = np.array([len(text) + 1 for text in corpus.texts])
    order = rng.permutation(np.repeat(np.arange(len(lengths)), corpus.repeats))
    chunks: list[np.ndarray] = []
    pool = 4096  # texts sorted by length at a time: some 15 batches
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        first = 0
        for end in range(1, len(part) + 1):
            if end == len(part) or lengths[part[end]] * (end + 1 - first) > tokens:
                chunks.append(part[first:end])
                first = end
    return [chunks[i] for i in rng.permutation(len(chunks))]


def batches_from(corpus: Corpus, tokens: int, seed: int, step: int) -> Iterator[list[np.ndarray]]:
    """The texts of each batch from the given step on, epoch after epoch."""
    for epoch in itertools.count():
        chunks = batches(corpus, tokens, seed, epoch)
        for chunk in chunks[step:]:
            yield [corpus.texts[i] for i in chunk]
        step = max(0, step - len(chunks))


def collate(texts: Sequence[np.ndarray], end: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T): each text begins and ends with end-of-text, pads are ignored.

    B is a multiple of `rows`: CPUs compile a kernel for every new shape, so let there be few.
    """
    shape = (-(-len(texts) // rows) * rows, max(map(len, texts)) + 1)
    inputs, targets = np.full(shape, end), np.full(shape, IGNORED)
    for row, text in enumerate(texts):
        inputs[row, 1 : len(text) + 1] = text
        targets[row, : len(text)] = text
        targets[row, len(text)] = end
    return torch.from_numpy(inputs), torch.from_numpy(targets)
