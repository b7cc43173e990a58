"""A reader that shares nothing with GPT-2 but the reviews: a word model that counts five in a row.

It has a number for every run of one to five words in 75,000 reviews, ten times as many as the
bundled GPT-2 has weights, and judges whether each word is likely after the four before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

START, END, UNKNOWN = 0, 1, 2
_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return _TOKEN.findall(text.lower())


class NgramReader:
    """Interpolated Kneser-Ney smoothing (Chen and Goodman 1999), one discount for each length.

    The probability of a word after a history h, by runs of at most k words:

        p_k(w | h) = max(c(h w) - D, 0) / c(h ·) + D · distinct(h ·) / c(h ·) · p_{k-1}(w | h')

    where h' is h without its first word. c counts occurrences for the longest runs and for those at
    the start of a sentence, and for the others the different words before them.
    """

    def __init__(self, sentences: Iterable[str], order: int = 5) -> None:
        """Counts the runs of up to `order` words; a word that occurs once is unknown."""
        split = [words(s) for s in sentences]
        frequency = Counter(w for s in split for w in s)
        known = sorted(w for w, n in frequency.items() if n > 1)
        self.row = {word: row for row, word in enumerate(known, start=3)}
        self.size = len(known) + 3
        self.order = order
        tokens, depth = self._flat(split)
        self.keys: list[Ints] = []  # of each length: the runs, sorted
        self.counts: list[Ints] = []
        self.totals: list[Ints] = []  # of each run one shorter: c(h ·)
        self.followers: list[Ints] = []  # and distinct(h ·)
        self.discounts: list[float] = []
        runs = np.zeros(len(tokens), np.int64)  # the run of this length that ends at each place
        raw: list[Ints] = []
        suffix: list[Ints] = []  # of each run, the one without its first word
        histories: list[Ints] = []
        at_start: list[npt.NDArray[np.bool_]] = []
        for length in range(1, order + 1):
            places = np.flatnonzero(depth >= max(1, length - 1))
            before = runs[places - 1] if length > 1 else np.zeros(len(places), np.int64)
            keys, first, which, count = np.unique(
                before * self.size + tokens[places],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            shorter, runs = runs, np.full(len(tokens), -1, np.int64)
            runs[places] = which
            if length == 1:  # the start is a history, and never a word
                runs[depth == 0] = len(keys)
            self.keys.append(keys)
            raw.append(count)
            histories.append(before[first])
            suffix.append(shorter[places[first]])
            at_start.append(depth[places[first]] == length - 1)
        for i in range(order):
            counts = raw[i]
            if i + 1 < order:
                continued = np.bincount(suffix[i + 1], minlength=len(counts))
                counts = np.where(at_start[i], counts, continued)
            n = 1 + (len(self.keys[i - 1]) if i else 0)
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            self.counts.append(counts)
            self.totals.append(np.bincount(histories[i], counts, n).astype(np.int64))
            self.followers.append(np.bincount(histories[i][counts > 0], minlength=n))
            self.discounts.append(once / (once + 2 * twice) if once else 0.5)

    def __len__(self) -> int:
        """The runs of words that it has counted."""
        return sum(map(len, self.keys))

    def _flat(self, split: Sequence[Sequence[str]]) -> tuple[Ints, Ints]:
        """All sentences in a row, each between START and END, and the tokens before each."""
        rows = [[START, *(self.row.get(w, UNKNOWN) for w in s), END] for s in split]
        depth = np.concatenate([np.arange(len(row)) for row in rows])
        return np.fromiter((t for row in rows for t in row), np.int64, len(depth)), depth

    def log_probabilities(self, sentences: Sequence[str]) -> list[npt.NDArray[np.float64]]:
        """The natural logarithm for each word of each sentence and for its end."""
        tokens, depth = self._flat([words(s) for s in sentences])
        p = np.full(len(tokens), 1 / (self.size - 1))  # START is no word
        runs = np.zeros(len(tokens), np.int64)
        for i in range(self.order):
            history = np.roll(runs, 1) if i else np.zeros(len(tokens), np.int64)
            history[depth < max(1, i)] = -1
            key = history * self.size + tokens
            found = np.searchsorted(self.keys[i], key).clip(max=len(self.keys[i]) - 1)
            there = (self.keys[i][found] == key) & (history >= 0)
            runs = np.where(there, found, -1)
            if i == 0:
                runs[depth == 0] = len(self.keys[0])
            total = np.where(history >= 0, self.totals[i][history], 0)
            some = total > 0
            count = np.where(there, self.counts[i][found], 0)[some]
            discount, followers = self.discounts[i], self.followers[i][history[some]]
            own, rest = np.maximum(count - discount, 0), discount * followers
            p[some] = (own + rest * p[some]) / total[some]
        ends = np.flatnonzero(tokens == END)
        starts = np.flatnonzero(tokens == START)
        logs = np.log(p)
        return [logs[a + 1 : b + 1] for a, b in zip(starts, ends, strict=True)]

    def perplexities(self, sentences: Sequence[str]) -> dict[str, float]:
        """Per word or mark, the end counted as one, as `Reader.perplexities` for a GPT-2."""
        logs = np.concatenate(self.log_probabilities(sentences))
        nats = -float(logs.mean())
        return {"sentences": len(sentences), "nats_per_token": nats, "perplexity": np.exp(nats)}
