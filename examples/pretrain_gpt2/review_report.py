"""How well the bundled GPT-2 writes and predicts, on reviews that no training text comes from.

Its samples stand beside held-out sentences by people in every figure that both have: words, runs
shared with the training reviews, sentiment, perplexity under another model.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pretrain_options import Args
from review_language_model import LanguageModelReader
from review_ngrams import NgramReader
from review_texts import BREAK, clean_sentences, paragraphs, shared_runs
from review_training import nats_and_tokens
from review_vocabulary import encode_gpt2, plain_length

from agents.gpt2 import GPT2
from text_sentiment_env import load_sentiment_model
from text_sentiment_env.vocabulary import Vocabulary

PROMPTS = ["The acting in this film", "I watched this movie", "The story", "If you"]
WORD = re.compile(r"\w+(?:'\w+)*")


class ReadsTexts(Protocol):
    """A model that says how likely texts are."""

    def perplexities(self, sentences: Sequence[str]) -> dict[str, float]:
        """Figures of the sentences, by name."""
        ...


class Reader(NamedTuple):
    """A model and its vocabulary."""

    model: GPT2
    vocabulary: Vocabulary

    @classmethod
    def load(cls, folder: str | Path, device: str) -> Reader:
        """A model whose config.json names its rows."""
        model = GPT2.from_pretrained(folder).to(device)
        if model.token_ids is None:
            raise ValueError(f"the config.json of {folder} has no token_ids: its rows are unknown")
        return cls(model, Vocabulary(model.token_ids))

    def restrict(self, vocabulary: Vocabulary) -> Reader:
        """The same model, choosing among fewer tokens."""
        return Reader(self.model.restrict(vocabulary.token_ids.tolist()), vocabulary)

    def perplexities(self, sentences: Sequence[str]) -> dict[str, float]:
        """How well the model predicts the sentences and their ends.

        The end counts as a token of its own, and as no word and no byte. The few sentences that
        are longer than the model reads are left out.
        """
        limit = self.model.config.n_positions
        encoded = {s: ids for s in sentences if len(ids := self.vocabulary.encode(s)) < limit}
        if not encoded:
            return {"sentences": 0}
        nats, tokens = nats_and_tokens(self.model, list(encoded.values()))
        gpt2_tokens = sum(len(ids) + 1 for ids in encode_gpt2(list(encoded)))
        return {
            "sentences": len(encoded),
            "nats_per_token": nats / tokens,
            "perplexity_per_gpt2_token": float(np.exp(nats / gpt2_tokens)),
            "perplexity_per_word": float(np.exp(nats / sum(len(s.split()) for s in encoded))),
            "bits_per_byte": nats / np.log(2) / sum(len(s.encode()) for s in encoded),
        }

    def samples(
        self, n: int, seed: int, prompt: str = "", new_tokens: int = 20
    ) -> tuple[list[str], np.ndarray]:
        """`n` texts at temperature 1, and the new tokens of each (`new_tokens` + 1: no end)."""
        device, end = self.model.wte.weight.device, self.vocabulary.end_index
        start = [end, *(self.vocabulary.encode(prompt) if prompt else [])]
        generator = torch.Generator(device).manual_seed(seed)
        texts, lengths = [], []
        for first in range(0, n, 500):
            ids = torch.tensor([start] * min(500, n - first), device=device)
            new = self.model.generate(ids, new_tokens, generator=generator).cpu()
            ended = new == end
            lengths.append(np.where(ended.any(1), ended.int().argmax(1) + 1, new_tokens + 1))
            texts += [prompt + self.vocabulary.decode(row) for row in new.tolist()]
        return texts, np.concatenate(lengths)


def frequent_words(reviews: Iterable[str], least: int = 5) -> set[str]:
    """The words that the reviews hold at least `least` times, in lower case."""
    counts = Counter(w for r in reviews for w in WORD.findall(BREAK.sub(" ", r).lower()))
    return {word for word, count in counts.items() if count >= least}


def of_words_alone(texts: Sequence[str], words: set[str]) -> float:
    """The share of texts that are nothing but words; "theBoth" is one only if people write it."""
    found = [WORD.findall(text.lower()) for text in texts]
    return float(np.mean([bool(some) and words.issuperset(some) for some in found]))


def like_lengths(lengths: Iterable[int], sentences: Sequence[str], seed: int) -> list[str]:
    """Sentences with these numbers of GPT-2 tokens, each used once while there are any left."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for sentence, ids in zip(sentences, encode_gpt2(sentences), strict=True):
        by_length[len(ids)].append(sentence)
    rng = random.Random(seed)
    for group in by_length.values():
        rng.shuffle(group)
    return [by_length[n].pop() for n in lengths if by_length[n]]


class Texts(NamedTuple):
    """Texts to measure, and the tokens of each, end included, where a model wrote them."""

    texts: list[str]
    lengths: np.ndarray | None = None


def measure(
    groups: dict[str, Texts],
    reviews: Iterable[str],
    words: set[str],
    readers: Mapping[str, ReadsTexts],
) -> dict[str, Any]:
    """The same figures of each group of texts.

    Args:
        groups: the texts, by the name of their authors.
        reviews: the training reviews, with which texts may share runs of words.
        words: all that counts as a word.
        readers: independent models that read the texts, by name.
    """
    everything = [text for group in groups.values() for text in group.texts]
    shared = shared_runs(everything, reviews)  # in one pass over the reviews
    runs = [shared.get(i, 0) for i in range(len(everything))]
    judge, found = load_sentiment_model("bundled"), {}
    for name, (texts, lengths) in groups.items():
        own_runs, runs = runs[: len(texts)], runs[len(texts) :]
        sentiment = np.asarray(judge(texts), np.float64)
        counts = np.array([len(text.split()) for text in texts])
        found[name] = {
            "texts": len(texts),
            "words_alone": of_words_alone(texts, words),
            "distinct": len(set(texts)) / len(texts),
            "distinct_words": len({w for t in texts for w in WORD.findall(t.lower())}),
            "mean_words": float(counts.mean()),
            "have_8_words": float((counts >= 8).mean()),
            "share_8_words": float(np.mean([run > 0 for run in own_runs])),
            "longest_shared_runs": sorted(own_runs)[:-6:-1],
            "sentiment_mean": float(sentiment.mean()),
            "sentiment_above_half": float((sentiment > 0.5).mean()),
            "sentiment_below_minus_half": float((sentiment < -0.5).mean()),
        }
        if lengths is not None:
            found[name] |= {
                "ended": float((lengths <= 20).mean()),
                "mean_tokens": float(lengths.mean()),
            }
            texts = [text for text, n in zip(texts, lengths.tolist(), strict=True) if n <= 20]
        for reader, model in readers.items():
            found[name][f"read_by_{reader}"] = model.perplexities(texts) if texts else {}
    return found


def held_out_sentences(reviews: Iterable[str], test: Iterable[str], seed: int) -> list[str]:
    """The distinct clean sentences of the test reviews that no training review holds, shuffled."""
    trained = set(clean_sentences(reviews))
    held_out = [s for s in clean_sentences(test) if s not in trained]
    random.Random(seed).shuffle(held_out)
    return held_out


def predictions(
    reader: Reader, held_out: Sequence[str], gpt2_ids: Sequence[Sequence[int]], args: Args
) -> dict[str, Any]:
    """Perplexities of kinds of held-out sentences, and beside those of `--compare`."""
    known = set(reader.vocabulary.token_ids.tolist())

    def pick(known: set[int], plain: bool = True) -> list[str]:
        fits = (
            s
            for s, ids in zip(held_out, gpt2_ids, strict=True)
            if known.issuperset(ids)
            and (not plain or (len(ids) <= args.longest and plain_length(ids) == len(ids)))
        )
        return [s for s, _ in zip(fits, range(args.report_sentences), strict=False)]

    found: dict[str, Any] = {
        "plain sentences within the vocabulary": reader.perplexities(pick(known)),
        "sentences within the vocabulary": reader.perplexities(pick(known, plain=False)),
        "all sentences": reader.perplexities(held_out[: args.report_sentences]),
    }
    if args.compare:
        other = Reader.load(args.compare, args.device)
        both = known & set(other.vocabulary.token_ids.tolist())
        shared = Vocabulary(sorted(both))  # end-of-text comes last
        for plain in (True, False):
            name = "plain sentences" if plain else "sentences"
            sentences = pick(both, plain)
            found[f"{name} within both vocabularies"] = {
                "this": reader.perplexities(sentences),
                "this, choosing among the tokens of both": reader.restrict(shared).perplexities(
                    sentences
                ),
                "compared": other.perplexities(sentences),
                "compared, choosing among the tokens of both": other.restrict(shared).perplexities(
                    sentences
                ),
            }
    return found


def make_report(
    reader: Reader, train: Sequence[str], unsup: Sequence[str], test: Sequence[str], args: Args
) -> dict[str, Any]:
    """All figures of the model card.

    Args:
        reader: the model.
        train: the labelled training reviews: a word is what they hold at least five times.
        unsup: the other training reviews.
        test: reviews that no training text comes from.
        args: the command line.
    """
    language_model = LanguageModelReader(args.reader, args.device) if args.reader else None
    reviews = [*train, *unsup]
    if language_model is not None and args.reader_sentences:
        sentences = clean_sentences(reviews)
        chosen = random.Random(args.seed).sample(
            sentences, min(args.reader_sentences, len(sentences))
        )
        language_model.fine_tune(chosen, seed=args.seed, quiet=args.quiet)
    held_out = held_out_sentences(reviews, test, args.seed)
    gpt2_ids = encode_gpt2(held_out)
    report: dict[str, Any] = {"predictions": predictions(reader, held_out, gpt2_ids, args)}

    other = Reader.load(args.compare, args.device) if args.compare else None
    readers = {"reviews": reader}
    small = Vocabulary.load("small")
    if set(reader.vocabulary.token_ids.tolist()).issuperset(small.token_ids.tolist()):
        readers["small"] = reader.restrict(small)
    if other is not None:
        readers["compared"] = other
    groups = {
        name: Texts(*one.samples(args.report_samples, args.seed)) for name, one in readers.items()
    }
    lengths = groups["reviews"].lengths
    assert lengths is not None
    wanted = (lengths[lengths <= 20] - 1).tolist()  # without the end
    plain = [s for s, ids in zip(held_out, gpt2_ids, strict=True) if plain_length(ids) == len(ids)]
    known = set(reader.vocabulary.token_ids.tolist())
    inside = [s for s, ids in zip(held_out, gpt2_ids, strict=True) if known.issuperset(ids)]
    groups |= {
        "people": Texts(held_out[: args.report_samples]),
        "people, like lengths": Texts(like_lengths(wanted, held_out, args.seed)),
        "people, like lengths, plain": Texts(like_lengths(wanted, plain, args.seed)),
        "people, like lengths, within the vocabulary": Texts(
            like_lengths(wanted, inside, args.seed)
        ),
    }
    groups = {name: group for name, group in groups.items() if group.texts}
    ngrams = NgramReader(s for review in reviews for part in paragraphs(review) for s in part)
    report["runs_of_words_counted"] = len(ngrams)
    independent: dict[str, ReadsTexts] = {"ngrams": ngrams}
    if other is not None:
        independent["compared"] = other
    if language_model is not None:
        independent["language model"] = language_model
    report["texts"] = measure(groups, reviews, frequent_words(train), independent)
    report["examples"] = {name: groups[name].texts[:40] for name in readers}
    report["prompted"] = {prompt: reader.samples(4, args.seed, prompt)[0] for prompt in PROMPTS}
    return report
