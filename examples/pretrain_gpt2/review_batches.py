"""Training texts and their batches: rows of like length, each text at the positions of its use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from review_texts import as_small
from review_vocabulary import count_tokens, encode_gpt2, plain_length, token_ids
from torch import Tensor

from text_sentiment_env.vocabulary import Vocabulary

IGNORED = -100  # target of a padded position, as in torch's cross entropy


class Corpus(NamedTuple):
    """Texts as rows of the vocabulary, without end-of-text, and how to use them.

    Attributes:
        texts: the rows.
        repeats: how often each comes in an epoch, (N,).
        whole: whether its end is learned too; else the text goes on with something unknown, (N,).
    """

    texts: list[np.ndarray]
    repeats: np.ndarray
    whole: np.ndarray

    def tokens(self) -> int:
        """Tokens to predict in an epoch."""
        lengths = np.array([len(text) for text in self.texts]) + self.whole
        return int((lengths * self.repeats).sum())

    def __add__(self, other: Corpus) -> Corpus:  # type: ignore[override]
        return Corpus(
            self.texts + other.texts,
            np.concatenate([self.repeats, other.repeats]),
            np.concatenate([self.whole, other.whole]),
        )


def make_corpus(texts: Sequence[Sequence[int]], vocabulary: Vocabulary, whole: bool) -> Corpus:
    """Each of the texts, GPT-2 tokens of the vocabulary, once."""
    row = np.full(int(vocabulary.token_ids.max()) + 1, -1, np.int32)
    row[vocabulary.token_ids] = np.arange(len(vocabulary))
    rows = [row[list(ids)] for ids in texts]
    return Corpus(rows, np.ones(len(rows), int), np.full(len(rows), whole))


def known_words(gpt2_ids: Sequence[Sequence[int]], vocabulary: Vocabulary, least: int) -> set[int]:
    """The vocabulary's tokens that plain texts of nothing else hold at least `least` times each."""
    known = set(vocabulary.token_ids.tolist())
    while True:
        counts = count_tokens(t for t in gpt2_ids if plain_length(t, known) == len(t))
        frequent = {i for i in known if counts[i] >= least}
        if frequent == known:
            return known
        known = frequent


def small_corpus(sentences: Sequence[str], known: set[int], vocabulary: Vocabulary) -> Corpus:
    """Sentences as the vocabulary "small" writes them, mostly or wholly in its words.

    Its words are lower-case and follow a space. The nearer a sentence is to that vocabulary, the
    more often it comes: the model restricted to these words writes nothing else.
    """
    small = token_ids("small")
    texts, repeats = [], []
    for ids in encode_gpt2([as_small(text) for text in sentences]):
        outside = sum(i not in small for i in ids)
        if outside <= 3 and len(ids) > 3 * outside and plain_length(ids, known | small) == len(ids):
            texts.append(ids)
            repeats.append((4, 3, 2, 1)[outside])
    return make_corpus(texts, vocabulary, whole=True)._replace(repeats=np.array(repeats, int))


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


def batches_from(
    corpus: Corpus, tokens: int, seed: int, step: int
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Texts of each batch, and which are whole, from the given step on, epoch after epoch."""
    for epoch in itertools.count():
        chunks = batches(corpus, tokens, seed, epoch)
        for chunk in chunks[step:]:
            yield [corpus.texts[i] for i in chunk], corpus.whole[chunk]
        step = max(0, step - len(chunks))


def collate(
    texts: Sequence[np.ndarray], end: int, rows: int = 1, whole: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T): each text begins and ends with end-of-text, pads are ignored.

    B is a multiple of `rows`: CPUs compile a kernel for every new shape, so let there be few. The
    end of a text that is not `whole` is ignored like a pad.
    """
    shape = (-(-len(texts) // rows) * rows, max(map(len, texts)) + 1)
    inputs, targets = np.full(shape, end), np.full(shape, IGNORED)
    for row, text in enumerate(texts):
        inputs[row, 1 : len(text) + 1] = text
        targets[row, : len(text)] = text
        if whole is None or whole[row]:
            targets[row, len(text)] = end
    return torch.from_numpy(inputs), torch.from_numpy(targets)
