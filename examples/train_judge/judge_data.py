"""The data sets that the judge learns from."""

from __future__ import annotations

import itertools
import json
import lzma
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from text_sentiment_env.judge import detokenise


def as_written(text: str) -> str:
    """Treebank text as people write it, capitals too: `do n't like it .` becomes `Don't like it.`."""
    text = re.sub(r"\bi\b", "I", detokenise(text))
    return re.sub(r"((?:^|[.!?] )\W*)([a-z])", lambda m: m[1] + m[2].upper(), text)


def sentences(review: str) -> Iterator[str]:
    """The sentences of 3 to 30 words of a review."""
    for sentence in re.split(r"(?<=[.!?])[\"')]*\s+", re.sub(r"(<br />)+", " ", review)):
        words = sentence.split()
        if 3 <= len(words) <= 30:
            yield " ".join(words)


def pairs(review: str) -> Iterator[str]:
    """Two sentences in a row of at most 24 words together."""
    for one, two in itertools.pairwise(sentences(review)):
        if len(one.split()) + len(two.split()) <= 24:
            yield f"{one} {two}"


def read_sst2(data: Path | None, split: str) -> list[tuple[str, int]]:
    """SST-2's sentences with their labels; `split` is train, dev or test."""
    if data is None:
        name = {"dev": "validation"}.get(split, split)
        rows = _load_dataset("stanfordnlp/sst2")[name]
        # GLUE hides the labels of its test sentences (-1): then there is nothing to measure.
        return [(row["sentence"].strip(), row["label"]) for row in rows if row["label"] >= 0]
    with lzma.open(data / f"sst2_{split}.tsv.xz", "rt", encoding="utf8") as file:
        next(file)
        return [
            (text, int(label)) for text, label in (line.rstrip("\n").split("\t") for line in file)
        ]


def read_imdb(data: Path | None) -> Iterator[tuple[str, int]]:
    """The training and the unlabelled reviews of IMDb, with 0, 1 or -1."""
    for split in ("train", "unsup" if data else "unsupervised"):
        if data is None:
            yield from (
                (row["text"], row["label"]) for row in _load_dataset("stanfordnlp/imdb")[split]
            )
        else:
            with lzma.open(data / f"imdb_{split}.jsonl.xz", "rt", encoding="utf8") as file:
                yield from ((row["text"], row["label"]) for row in map(json.loads, file))


def _load_dataset(name: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            "Without --data DIR the data sets come from the hub: pip install datasets"
        ) from error
    return load_dataset(name)


# Words that turn a sentence of a review from telling what happens to saying something about it.
_OPINION = re.compile(
    r"\b(i|i'm|i've|you|your|me|my|we|us|our|it|it's|its|itself|this|one|worth|book|like|such"
    r"|movies?|films?|scenes?|characters?|camera|shots?|music|score|dvd|version|series|show|cast"
    r"|story|effects?|stars?|time|ending|minutes|sequel|remake|actors?|actress\w*|watch\w*|plot\w*"
    r"|act\w*|script\w*|perform\w*|direct\w*|review\w*|dialog\w*|rat\w*|episode\w*|hour\w*"
    r"|should|could|would|no|not|nor|never|nothing|none|only|just|even|too|so|instead|why|how|what"
    r"|if|than|but|more|less|most|least|all|any\w*|every\w*|much|many|hardly|barely|very|quite"
    r"|rather|really|pretty)\b|n't|\d/|[!?\"(:*;]|\.\.",
    re.IGNORECASE,
)


def is_statement(text: str) -> bool:
    """Whether a sentence of a review only tells what happens: *A teenage boy wakes up on a train.*

    A classifier trained on opinions alone reads an opinion into these too.
    """
    return not _OPINION.search(text) and _word_list().polarity_scores(text)["compound"] == 0


def repeats_itself(text: str) -> bool:
    """Whether people's text says a word of five letters twice, or three of ten words again."""
    words = re.findall(r"[a-z']+", text.lower())
    long = [word for word in words if len(word) >= 5]
    return len(set(long)) < len(long) or len(set(words)) <= 0.7 * len(words)


@cache
def _word_list() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vary(texts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """New texts in the style of the old: words masked or exchanged, pieces cut out or joined.

    The idea of Tang et al. (2019), "Distilling Task-Specific Knowledge from BERT into Simple Neural
    Networks": the teacher knows the label of any text, so the few sentences of a style can be made
    many. The texts need no sense.
    """
    long = [words for words in (text.split() for text in texts) if len(words) >= 5]
    new: dict[str, None] = {}  # in order, each once
    while len(new) < count:
        words = list(rng.choice(long))
        if rng.random() < 0.4:  # one sentence's head with another's tail
            other = rng.choice(long)
            words = words[: rng.randint(2, len(words))]
            words += rng.choice([[], ["but"], ["and"], [","], [", but"], ["--"]])
            words += other[rng.randrange(len(other) - 1) :]
        elif rng.random() < 0.3:
            start = rng.randrange(len(words) - 3)
            words = words[start : start + rng.randint(3, len(words))]
        share = rng.choice([0.0, 0.1, 0.2])
        for i in range(len(words)):
            if rng.random() < share:
                words[i] = rng.choice(rng.choice(long)) if rng.random() < 0.7 else ""
        text = " ".join(" ".join(words[:30]).split())
        if text:
            new[text] = None
    return list(new)


class Corpus(NamedTuple):
    """Texts and what is known about them."""

    texts: list[str]
    label: npt.NDArray[np.float32]  # 0, 1 or NaN

    @classmethod
    def of(cls, rows: Sequence[tuple[str, int]]) -> Corpus:
        """From texts with 0, 1 or -1 (unknown)."""
        labels = np.array([label for _, label in rows], np.float32)
        return cls([text for text, _ in rows], np.where(labels < 0, np.float32(np.nan), labels))


def read_corpus(data: Path | None, count: int, seed: int) -> dict[str, Corpus]:
    """SST-2's training texts, and `count` different sentences and pairs of sentences of IMDb."""
    found: dict[str, int] = {}
    for review, label in tqdm(read_imdb(data), desc="reviews", total=75_000):
        for sentence in itertools.chain(sentences(review), pairs(review)):
            found.setdefault(sentence, label)
    imdb = list(found.items())
    random.Random(seed).shuffle(imdb)
    return {"sst2": Corpus.of(read_sst2(data, "train")), "imdb": Corpus.of(imdb[:count])}
