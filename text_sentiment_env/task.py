"""The rules of the game, each in one place: prompts, the end of a text, and the reward.

`TextSentimentEnv` and `TextSentimentVectorEnv` keep the state; what they do with it is asked here, for
any number of rows at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from text_sentiment_env.sentiment import SentimentModel, shared_sentiment_model
from text_sentiment_env.vocabulary import Vocabulary

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

_RESERVED = ("prompt", "text", "sentiment", "length_penalty", "repetition_penalty", "length")


class TextSentimentTask:
    """What the arguments of `gym.make("TextSentiment-v0")` decide; see `TextSentimentEnv`."""

    def __init__(
        self,
        *,
        vocabulary: str | Sequence[str] | Vocabulary = "small",
        max_tokens: int = 20,
        prompts: Sequence[str] | str | os.PathLike[str] | None = None,
        sentiment_model: str | SentimentModel = "bundled",
        reward_type: str = "graded",
        target: str = "positive",
        length_penalty: float = 0.5,
        target_length: tuple[int, int] = (8, 20),
        repetition_penalty: float = 0.0,
        extra_terms: Mapping[str, Callable[[list[str]], npt.ArrayLike]] | None = None,
        shaping: bool = False,
    ) -> None:
        """Checks every argument and loads the judge.

        Raises:
            ValueError: naming the argument, its value and the fix.
        """
        self.vocabulary = Vocabulary.load(vocabulary)
        self.max_tokens = _whole("max_tokens", max_tokens, least=1)
        self.prompts = _read_prompts(prompts)
        self.reward_type = _one_of("reward_type", reward_type, ("graded", "binary"))
        self.target = _one_of("target", target, ("positive", "negative"))
        self.length_penalty = _not_negative("length_penalty", length_penalty)
        self.repetition_penalty = _not_negative("repetition_penalty", repetition_penalty)
        self.target_length = _length_range(target_length)
        lengths = np.arange(self.max_tokens + 1)
        outside = np.abs(lengths - lengths.clip(*self.target_length))
        self._length_penalties = self.length_penalty * outside / self.max_tokens  # by length
        self.extra_terms = _terms(extra_terms)
        self.shaping = bool(shaping)
        encoded = [self._encode(prompt) for prompt in self.prompts]
        self.prompt_length = max(map(len, encoded))
        self._prompt_texts = np.array(self.prompts, object)
        self._prompt_tokens = np.stack([self._pad(tokens) for tokens in encoded])
        self._prompt_lengths = np.array([len(tokens) for tokens in encoded])
        self._prompt_rows = {prompt: row for row, prompt in enumerate(self.prompts)}
        self.sentiment_model = sentiment_model
        self._judge = _load_judge(sentiment_model)

        size, width = len(self.vocabulary), self.prompt_length + self.max_tokens
        self.action_space = spaces.Discrete(size)
        self.observation_space = spaces.Box(0, size, (width,), np.int64)

    def __getstate__(self) -> dict[str, Any]:
        # A judge known by name is loaded anew, so that pickles stay small.
        state = self.__dict__.copy()
        if isinstance(self.sentiment_model, str):
            del state["_judge"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_judge" not in state:
            self._judge = _load_judge(self.sentiment_model)

    # ------------------------------------------------------------------------------------ prompts

    def _encode(self, prompt: str) -> Tokens:
        try:
            return self.vocabulary.encode(prompt)
        except ValueError as error:
            raise ValueError(f"prompts holds {prompt!r}, which can't be encoded: {error}") from None

    def _pad(self, tokens: Tokens) -> Tokens:
        padded = np.full(self.prompt_length, self.vocabulary.pad_index, np.int64)
        padded[: len(tokens)] = tokens
        return padded

    def _tokens_of(self, prompt: str) -> tuple[Tokens, int]:
        if not isinstance(prompt, str):
            raise ValueError(f"options['prompt'] must be a string, got {prompt!r}")
        row = self._prompt_rows.get(prompt)
        if row is not None:
            return self._prompt_tokens[row], self._prompt_lengths[row]
        tokens = self._encode(prompt)
        if len(tokens) > self.prompt_length:
            raise ValueError(
                f"options['prompt']={prompt!r} has {len(tokens)} tokens, but observations leave"
                f" room for {self.prompt_length}, the longest of `prompts`: shorten it, or make"
                " the environment with prompts=[...] that holds one as long"
            )
        return self._pad(tokens), len(tokens)

    def start(
        self, generators: Sequence[np.random.Generator], given: Sequence[str | None] | None = None
    ) -> tuple[npt.NDArray[np.object_], Tokens, Tokens]:
        """The prompts of k new episodes: those given, the others drawn, each with its own generator.

        Args:
            generators: k of them.
            given: a prompt, or None, for each; None: all are drawn.

        Returns:
            The prompts (k,), their tokens, padded to the longest of `prompts`, (k, p), and how many
            each has (k,).

        Raises:
            ValueError: for a prompt that is not text, is outside the vocabulary or too long.
        """
        count, k = len(self.prompts), len(generators)
        rows = np.zeros(k, np.int64)
        if count > 1:  # one prompt needs no draw, so that it doesn't consume randomness
            fixed = given or [None] * k
            for i, generator in enumerate(generators):
                rows[i] = generator.integers(count) if fixed[i] is None else 0
        texts, tokens = self._prompt_texts[rows], self._prompt_tokens[rows]
        lengths = self._prompt_lengths[rows]
        for i, prompt in enumerate(given or ()):
            if prompt is not None:
                texts[i], (tokens[i], lengths[i]) = prompt, self._tokens_of(prompt)
        return texts, tokens, lengths

    # ---------------------------------------------------------------------------------- the rules

    def ends(self, action: Any, steps: Any) -> Any:
        """Whether the text is finished after `action` was its `steps`-th (scalars or arrays)."""
        return (action == self.vocabulary.end_index) | (steps == self.max_tokens)

    def reward(
        self,
        tokens: Tokens,
        starts: Tokens,
        potential: Floats,
        ended: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[Floats, Floats, dict[str, npt.NDArray[Any]]]:
        """Judges k texts in one call and sums the terms of their rewards.

        Args:
            tokens: the texts, prompts included, as their observations show them, int64 (k, L).
            starts: the length of each one's prompt, int64 (k,).
            potential: the sentiment term already paid to each, float64 (k,), 0 without shaping.
            ended: which texts are finished, bool (k,); None: all. An unfinished one (dense shaping) gets
                only the increment of its sentiment term (Ng, Harada and Russell 1999, with discount 1).

        Returns:
            Rewards (k,), the sentiment terms (k,), and the finished texts' info, arrays over them.
        """
        texts = self.vocabulary.decode_batch(tokens)
        sentiment = self._sentiment(texts)
        term = np.sign(sentiment) if self.reward_type == "binary" else sentiment
        term = -term if self.target == "negative" else term
        rewards = term - potential

        finished: npt.NDArray[np.intp] | slice = slice(None)
        if ended is not None:
            finished = ended.nonzero()[0]
            texts = [texts[i] for i in finished]
            tokens, starts, sentiment = tokens[finished], starts[finished], sentiment[finished]
            if not texts:
                return rewards, term, {}
        # <|endoftext|> and PAD are the two highest indices.
        lengths = (tokens < self.vocabulary.end_index).sum(1) - starts
        length_penalty = self._length_penalties[lengths]
        repetition_penalty = np.zeros(len(texts))
        if self.repetition_penalty:
            repetition_penalty[:] = [
                self.repetition_penalty * _repeated_bigrams(row[start : start + length])
                for row, start, length in zip(tokens, starts, lengths, strict=True)
            ]
        info: dict[str, npt.NDArray[Any]] = {
            "text": np.array(texts, object),
            "sentiment": sentiment,
            "length_penalty": length_penalty,
            "repetition_penalty": repetition_penalty,
            "length": lengths,
        }
        rewards[finished] -= length_penalty + repetition_penalty
        for name, function in self.extra_terms.items():
            info[name] = _scores(f"extra_terms[{name!r}]", function(texts), len(texts))
            rewards[finished] += info[name]
        return rewards, term, info

    def _sentiment(self, texts: list[str]) -> Floats:
        """The judge's scores (k,); an empty text is neutral and isn't shown to the judge."""
        written = [bool(text.strip()) for text in texts]
        read = list(compress(texts, written))
        if not read:
            return np.zeros(len(texts))
        scores = _scores("sentiment_model", self._judge(read), len(read), largest=1.0)
        if len(read) < len(texts):
            scores, of_read = np.zeros(len(texts)), scores
            scores[written] = of_read
        return scores


def _repeated_bigrams(tokens: Tokens) -> float:
    bigrams = list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    return (len(bigrams) - len(set(bigrams))) / len(bigrams) if bigrams else 0.0


def _scores(
    name: str, values: npt.ArrayLike, count: int, largest: float = sys.float_info.max
) -> Floats:
    """What a judge or reward term returned, as float64 (count,), or an error that says its fault."""
    scores = np.array(values, np.float64)
    if scores.shape != (count,):
        raise ValueError(
            f"{name} returned an array of shape {scores.shape} for {count} texts:"
            f" it must return one float a text, shape ({count},)"
        )
    low, high = np.minimum.reduce(scores), np.maximum.reduce(scores)  # half the cost of .min()
    if -largest <= low and high <= largest:  # NaN is not
        return scores
    finite = np.isfinite(scores)
    if not finite.all():
        bad = int(finite.argmin())
        raise ValueError(f"{name} returned {scores[bad]} for text {bad} of {count}: must be finite")
    worst = scores[np.abs(scores).argmax()]
    if abs(worst) > largest + 1e-6:  # more than rounding
        raise ValueError(
            f"{name} returned {worst}: scores must lie in [-1, 1]"
            " (P(positive) - P(negative), or tanh of a logit)"
        )
    return scores.clip(-largest, largest)


def _load_judge(sentiment_model: str | os.PathLike[str] | SentimentModel) -> SentimentModel:
    if isinstance(sentiment_model, str | os.PathLike):
        return shared_sentiment_model(os.fspath(sentiment_model))
    if not callable(sentiment_model):
        raise ValueError(
            f"sentiment_model={sentiment_model!r} is neither a name nor a callable: use 'bundled', 'vader', a"
            " Hugging Face id or directory, or a callable list[str] -> scores in [-1, 1]"
        )
    return sentiment_model


def _read_prompts(prompts: Sequence[str] | str | os.PathLike[str] | None) -> list[str]:
    if prompts is None:
        return [""]
    if isinstance(prompts, str | os.PathLike):
        path = Path(prompts)
        if not path.is_file():
            raise ValueError(
                f"prompts={os.fspath(prompts)!r} is not a file: pass a text file with one prompt a"
                " line, or a list of strings"
            )
        lines = [line.rstrip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        if not lines:
            raise ValueError(
                f"prompts={os.fspath(prompts)!r} holds no prompt: write one a line, or use None"
            )
        return lines
    texts = list(prompts)
    if not texts:
        raise ValueError("prompts=[] holds no prompt: pass at least one string, or None")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"prompts must hold strings, got {text!r}")
    return texts


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
    return int(value)


def _not_negative(name: str, value: float) -> float:
    if not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
        raise ValueError(f"{name}={value!r} must be a finite number >= 0; 0 switches it off")
    return float(value)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
    return value


def _length_range(value: tuple[int, int]) -> tuple[int, int]:
    try:
        low, high = (_whole("target_length", bound, least=0) for bound in value)
    except (TypeError, ValueError):
        low, high = 1, 0
    if low > high:
        raise ValueError(
            f"target_length={value!r} must be two whole numbers (lo, hi) with 0 <= lo <= hi"
        )
    return low, high


def _terms(
    terms: Mapping[str, Callable[[list[str]], npt.ArrayLike]] | None,
) -> dict[str, Callable[[list[str]], npt.ArrayLike]]:
    checked = dict(terms or {})
    for name, function in checked.items():
        if not isinstance(name, str) or name in _RESERVED or name.startswith("_"):
            raise ValueError(
                f"extra_terms holds the name {name!r}: use a string that doesn't begin with '_' and"
                f" is none of {', '.join(_RESERVED)}"
            )
        if not callable(function):
            raise ValueError(
                f"extra_terms[{name!r}]={function!r} must be a callable list[str] -> floats"
            )
    return checked
