"""The vocabulary of the bundled GPT-2: whole common words, all they are merged from, all bytes."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from text_sentiment_env.vocabulary import (
    END_OF_TEXT_ID,
    Vocabulary,
    byte_characters,
    gpt2_encoding,
)


def encode_gpt2(texts: Sequence[str]) -> list[list[int]]:
    """GPT-2's own token ids of each text."""
    return gpt2_encoding().encode_ordinary_batch(list(texts), num_threads=1)


def count_tokens(gpt2_ids: Iterable[Sequence[int]]) -> np.ndarray:
    """How often each of GPT-2's tokens occurs, (50257,)."""
    flat = np.fromiter(itertools.chain.from_iterable(gpt2_ids), np.int64)
    return np.bincount(flat, minlength=END_OF_TEXT_ID + 1)


def token_ids(name: str) -> set[int]:
    """The GPT-2 tokens of a named vocabulary."""
    return set(Vocabulary.load(name).token_ids.tolist())


class _TokenKinds(NamedTuple):
    """GPT-2's tokens by where a plain text can hold them."""

    begins: frozenset[int]  # a text's first word
    follows: frozenset[int]  # a word behind a space, a number, punctuation
    continues: frozenset[int]  # more letters of the word before


@cache
def _token_kinds() -> _TokenKinds:
    token_bytes = Vocabulary.load("gpt2").token_bytes[:END_OF_TEXT_ID]

    def those(pattern: bytes) -> frozenset[int]:
        return frozenset(i for i, token in enumerate(token_bytes) if re.fullmatch(pattern, token))

    return _TokenKinds(
        begins=those(rb"[A-Z][a-z]*"),
        follows=those(rb" [A-Za-z]+| ?[0-9]+|[,.;:!?%]|'(?:s|t|re|ve|ll|d|m)| [$]"),
        continues=those(rb"[A-Za-z].*"),
    )


def plain_length(gpt2_ids: Sequence[int], known: set[int] | None = None) -> int:
    """How many of a text's tokens can be written as whole words and plain punctuation.

    Counted are the tokens before the first that is part of a word, joined to the word before it,
    or not among `known` (None: any token is).
    """
    kinds = _token_kinds()
    for place, token in enumerate(gpt2_ids):
        fits = token in kinds.follows or (place == 0 and token in kinds.begins)
        if not fits and place and token in kinds.continues:
            return place - 1  # the token before is the beginning of the same word
        if not fits or (known is not None and token not in known):
            return place
    return len(gpt2_ids)


def gpt2_merges() -> list[tuple[int, int] | None]:
    """For each GPT-2 token the two tokens that its merge joins; None for the 256 bytes."""
    file = resources.files("text_sentiment_env") / "data" / "vocab.bpe"
    merges: list[tuple[int, int] | None] = [None] * 256
    id_of = {character: i for i, character in enumerate(byte_characters().values())}
    for line in file.read_text("utf-8").splitlines()[1:]:  # line 1 is the version
        left, right = line.split(" ")
        id_of[left + right] = len(merges)
        merges.append((id_of[left], id_of[right]))
    return merges


def choose_vocabulary(counts: np.ndarray, size: int, keep: Iterable[int]) -> Vocabulary:
    """The `size` tokens that remain when the rarest are given up one by one.

    Only tokens that no other is merged from are given up. So the rest is closed under merges: with
    all 256 bytes in it, it encodes every text, and as GPT-2 does where it has GPT-2's tokens.

    Args:
        counts: how often each of GPT-2's tokens occurs in the texts, (50257,).
        size: number of tokens, end-of-text included.
        keep: tokens to keep however rare (and with them what they are merged from).
    """
    merges, kept = gpt2_merges(), set(keep)
    uses = Counter(i for pair in merges if pair for i in pair)
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
            uses[part] -= 1
        for part in set(pair):
            if not uses[part]:
                heapq.heappush(leaves, (int(counts[part]), part))
    return Vocabulary([*sorted(remaining), END_OF_TEXT_ID])
