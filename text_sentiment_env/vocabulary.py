"""GPT-2's byte-pair encoding, and the subsets of its tokens that serve as action sets.

The encoding is built from GPT-2's own merges (`data/vocab.bpe`, OpenAI, modified MIT license).
`tiktoken.get_encoding("gpt2")` would download them.
"""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from text_sentiment_env import checks

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256
GPT2_VOCABULARY_SIZE = 50257

# GPT-2's pre-tokenizer (openai/gpt-2, src/encoder.py): no merge crosses the border of a piece.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _data(name: str) -> str:
    return (resources.files("text_sentiment_env") / "data" / name).read_text("utf-8")


@cache
def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in GPT-2's files, in the order of their ids.

    A printable byte stands for itself, the others in order for chr(256), chr(257)...
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in set(printable)]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@cache
def gpt2_ranks() -> dict[bytes, int]:
    """The bytes of GPT-2's 50,256 ordinary tokens, each with its id, which is its merge rank."""
    byte_of = {character: b for b, character in byte_characters().items()}
    ranks = {bytes([b]): rank for rank, b in enumerate(byte_characters())}
    for merge in _data("vocab.bpe").splitlines()[1:]:  # line 1 is the version
        ranks[bytes(byte_of[char] for char in merge.replace(" ", ""))] = len(ranks)
    return ranks


@cache
def gpt2_token_bytes() -> list[bytes]:
    """The bytes of GPT-2's 50,257 tokens by id; the last one is `<|endoftext|>`."""
    return [*gpt2_ranks(), END_OF_TEXT.encode()]


@cache
def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's byte-pair encoding (Radford et al. 2019), from the merges in this package."""
    return _encoding("gpt2", gpt2_ranks())


def _encoding(name: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(
        name,
        pat_str=_PIECES,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: END_OF_TEXT_ID},
    )


class Vocabulary:
    """An action set: a subset of GPT-2's 50,257 tokens, `<|endoftext|>` always the last.

    Action i is GPT-2 token `token_ids[i]`. A softmax over the subset's logits is GPT-2 conditioned
    on the subset, so that one GPT-2 serves every vocabulary.

    >>> vocabulary = Vocabulary.load("small")
    >>> len(vocabulary), vocabulary.end_index, vocabulary.pad_index
    (100, 99, 100)
    >>> vocabulary.decode(vocabulary.encode("the movie is not good."))
    ' the movie is not good.'

    Attributes:
        token_ids: the GPT-2 id of each action, int64 array of shape (V,).
        token_bytes: the bytes that each action appends to the text, a list of length V.
        end_index: the action `<|endoftext|>`, V - 1, which ends the text.
        pad_index: V, which is no action and fills observations behind the text.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        """Makes a vocabulary of GPT-2 token ids; `<|endoftext|>` (50256) is moved or added last.

        Raises:
            ValueError: for an id that is no whole number in [0, 50257), a repeated one, or no token
                beside end-of-text.
        """
        most = GPT2_VOCABULARY_SIZE - 1
        ids = [
            checks.whole_number(f"token_ids[{i}]", token_id, least=0, most=most)
            for i, token_id in enumerate(token_ids)
        ]
        repeated = [
            i for i, count in zip(*np.unique(ids, return_counts=True), strict=True) if count > 1
        ]
        if repeated:
            words = [gpt2_token_bytes()[i].decode(errors="replace") for i in repeated]
            raise ValueError(f"vocabulary holds {words} more than once: remove the repeats")
        ordinary = [i for i in ids if i != END_OF_TEXT_ID]
        if not ordinary:
            raise ValueError(
                "vocabulary is empty: it needs at least one token beside <|endoftext|>"
            )
        self.token_ids: npt.NDArray[np.int64] = np.array([*ordinary, END_OF_TEXT_ID], np.int64)
        self.token_ids.flags.writeable = False
        self.token_bytes: list[bytes] = [gpt2_token_bytes()[i] for i in ordinary] + [b""]
        self.end_index = len(ordinary)
        self.pad_index = self.end_index + 1
        self._index = {int(token_id): index for index, token_id in enumerate(self.token_ids)}
        readings: list[Any] = [*self.token_bytes, b""]  # of actions and padding
        # Texts are joined from strings where each token is whole characters: a tenth of the time
        # of a step of 1,024 rows.
        with contextlib.suppress(UnicodeDecodeError):
            readings = [token.decode() for token in readings]
        self._readings = np.array(readings, object)

    @classmethod
    def load(cls, vocabulary: str | Sequence[str] | Vocabulary) -> Vocabulary:
        """Makes the vocabulary that the environment's `vocabulary` argument names.

        Args:
            vocabulary: `"small"` (100 tokens: a film review's words), `"reviews"` (the bundled
                language model's tokens, which encode any text), `"gpt2"` (all 50,257), or strings
                that are each one GPT-2 token (most words with their leading space: `" movie"`).

        Raises:
            ValueError: for an unknown name, a string that is not one GPT-2 token, or a collection
                that is no list.
        """
        if isinstance(vocabulary, Vocabulary):
            return vocabulary
        if isinstance(vocabulary, str):
            if vocabulary not in _NAMED:
                raise ValueError(
                    f"vocabulary={vocabulary!r} is unknown: use one of {', '.join(map(repr, _NAMED))}"
                    " or a list of strings that are each one GPT-2 token"
                )
            return _named(vocabulary)
        words = checks.texts("vocabulary", vocabulary, "a name or a list of strings")
        return cls(_single_token(word) for word in words)

    def __len__(self) -> int:
        """The number of actions V."""
        return len(self.token_ids)

    @cached_property
    def encodes_any_text(self) -> bool:
        """Whether the vocabulary holds all 256 bytes, GPT-2's first tokens."""
        return self._index.keys() >= set(range(256))

    @cached_property
    def _own_encoding(self) -> tiktoken.Encoding:
        # Such a vocabulary has a byte-pair encoding of its own: GPT-2's merges without those that
        # lead out of it. Both agree on every text that GPT-2's can encode here, if the vocabulary
        # holds the two halves of each of its merges, as `reviews` does.
        if self.encodes_any_text:
            return _encoding(
                "subset",
                {self.token_bytes[i]: t for t, i in self._index.items() if t != END_OF_TEXT_ID},
            )
        return gpt2_encoding()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The action indices of a text, int64 of shape (n,).

        The text is tried as given and then with a leading space, because word vocabularies hold
        `" movie"`, not `"movie"`.

        Raises:
            ValueError: for a text that is no string, holds lone surrogates, or holds a token that is
                not in this vocabulary; the error names it.
        """
        checks.text("text", text)
        attempts = [self._own_encoding.encode_ordinary(t) for t in (text, " " + text)]
        for ids in attempts:
            if all(token_id in self._index for token_id in ids):
                return np.array([self._index[token_id] for token_id in ids], np.int64)
        # The error is about the attempt that got further.
        gaps = [next(i for i, t in enumerate(ids) if t not in self._index) for ids in attempts]
        missing = attempts[int(np.argmax(gaps))][max(gaps)]
        raise ValueError(
            f"text {text!r} is outside this vocabulary of {len(self)} tokens: it lacks"
            f" {gpt2_token_bytes()[missing].decode(errors='replace')!r}. Reword the text, add the"
            " token, or use vocabulary='gpt2'"
        )

    def decode(self, indices: Iterable[int]) -> str:
        """The text of action indices; end-of-text and padding add nothing.

        Bytes that don't make up a UTF-8 character read as U+FFFD.

        Raises:
            IndexError: for an index that is neither an action nor padding.
        """
        row = np.fromiter(map(operator.index, indices), np.int64)
        wrong = row[(row < 0) | (row > self.pad_index)]
        if len(wrong):
            raise IndexError(
                f"index {wrong[0]} is no action: it must lie in [0, {self.pad_index}), or be PAD"
                f" {self.pad_index}"
            )
        return self.decode_batch(row[None])[0]

    def decode_batch(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The texts of k rows of indices (k, n), unchecked: several times as fast as `decode`."""
        texts = self._readings[rows].tolist()
        if isinstance(self._readings[0], str):
            return list(map("".join, texts))
        return [b"".join(tokens).decode("utf-8", "replace") for tokens in texts]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and np.array_equal(self.token_ids, other.token_ids)

    def __hash__(self) -> int:
        return hash(self.token_ids.tobytes())

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[list[int]]]:
        return Vocabulary, (self.token_ids.tolist(),)

    def __repr__(self) -> str:
        words = [token.decode(errors="replace") for token in self.token_bytes[:3]]
        return f"Vocabulary({len(self)} tokens: {words}...)"


def _single_token(word: str) -> int:
    """The id of a string that is one GPT-2 token, or a ValueError that shows its tokens."""
    if word == END_OF_TEXT:
        return END_OF_TEXT_ID
    ids = gpt2_encoding().encode_ordinary(word)
    if len(ids) == 1:
        return ids[0]
    pieces = [gpt2_token_bytes()[i].decode(errors="replace") for i in ids]
    spaced = not word.startswith(" ") and len(gpt2_encoding().encode_ordinary(" " + word)) == 1
    fix = f"{' ' + word!r}, with its leading space, is one" if spaced else "choose another word"
    raise ValueError(f"vocabulary word {word!r} is not one GPT-2 token but {pieces}: {fix}")


def _words(name: str) -> list[str]:
    return _data(name).splitlines()


_NAMED = {
    "small": lambda: [_single_token(word) for word in _words("small_vocab.txt")],
    "reviews": lambda: json.loads(_data("reviews_vocab.json")),
    "gpt2": lambda: range(GPT2_VOCABULARY_SIZE),
}


@cache
def _named(name: str) -> Vocabulary:
    return Vocabulary(_NAMED[name]())
