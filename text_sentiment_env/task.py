"""The rules of the game, each in one place: prompts, the end of a text, and the reward.

`TextSentimentEnv` and `TextSentimentVectorEnv` keep the state; what they do with it is asked here, for
any number of rows at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
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
        self.extra_terms = _terms(extra_terms)
        self.shaping = bool(shaping)
        self._encoded = {prompt: self._encode(prompt) for prompt in self.prompts}
        self.prompt_length = max(map(len, self._encoded.values()))
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

    def start(self, generator: np.random.Generator, prompt: str | None) -> tuple[str, Tokens]:
        """The prompt of a new episode and its tokens: the one given, else one drawn.

        Raises:
            ValueError: for a prompt that is not text, is outside the vocabulary or too long.
        """
        if prompt is None:
            # One prompt needs no draw, so that it doesn't consume randomness.
            count = len(self.prompts)
            prompt = self.prompts[int(generator.integers(count)) if count > 1 else 0]
        if not isinstance(prompt, str):
            raise ValueError(f"options['prompt'] must be a string, got {prompt!r}")
        tokens = self._encoded.get(prompt)
        if tokens is None:
            tokens = self._encode(prompt)
            if len(tokens) > self.prompt_length:
                raise ValueError(
                    f"options['prompt']={prompt!r} has {len(tokens)} tokens, but observations leave"
                    f" room for {self.prompt_length}, the longest of `prompts`: shorten it, or make"
                    " the environment with prompts=[...] that holds one as long"
                )
        return prompt, tokens

    # ---------------------------------------------------------------------------------- the rules

    def ends(self, action: Any, steps: Any) -> Any:
        """Whether the text is finished after `action` was its `steps`-th (scalars or arrays)."""
        return (action == self.vocabulary.end_index) | (steps == self.max_tokens)

    def reward(
        self,
        rows: Sequence[Tokens],
        starts: Sequence[int],
        ended: Sequence[bool],
        potential: Floats,
    ) -> tuple[Floats, Floats, dict[str, npt.NDArray[Any]]]:
        """Judges k texts in one call and sums the terms of their rewards.

        Args:
            rows: each text's tokens, prompt included.
            starts: the length of each one's prompt.
            ended: which texts are finished; an unfinished one (dense shaping) gets only the increment
                of its sentiment term (Ng, Harada and Russell 1999, with discount 1).
            potential: float64 (k,), the sentiment term already paid to each, 0 without shaping.

        Returns:
            Rewards (k,), the sentiment terms (k,), and the finished texts' info, arrays over them.
        """
        texts = [self.vocabulary.decode(row) for row in rows]
        sentiment = self._sentiment(texts)
        term = np.sign(sentiment) if self.reward_type == "binary" else sentiment
        term = -term if self.target == "negative" else term
        rewards = term - potential

        finished = [i for i, over in enumerate(ended) if over]
        if not finished:
            return rewards, term, {}
        generated = [self._generated(rows[i], starts[i]) for i in finished]
        lengths = np.array([len(tokens) for tokens in generated])
        low, high = self.target_length
        outside = np.maximum(low - lengths, 0) + np.maximum(lengths - high, 0)
        repeated = np.zeros(len(finished))
        if self.repetition_penalty:
            repeated[:] = [_repeated_bigrams(tokens) for tokens in generated]
        final_texts = [texts[i] for i in finished]
        info: dict[str, npt.NDArray[Any]] = {
            "text": np.array([*final_texts, None], object)[:-1],  # None keeps numpy from guessing
            "sentiment": sentiment[finished],
            "length_penalty": self.length_penalty * outside / self.max_tokens,
            "repetition_penalty": self.repetition_penalty * repeated,
            "length": lengths,
        }
        rewards[finished] -= info["length_penalty"] + info["repetition_penalty"]
        for name, function in self.extra_terms.items():
            info[name] = _scores(f"extra_terms[{name!r}]", function(final_texts), len(finished))
            rewards[finished] += info[name]
        return rewards, term, info

    def _generated(self, row: Tokens, start: int) -> Tokens:
        last = len(row) - 1
        return row[start:last] if row[last] == self.vocabulary.end_index else row[start:]

    def _sentiment(self, texts: list[str]) -> Floats:
        """The judge's scores (k,); an empty text is neutral and isn't shown to the judge."""
        scores = np.zeros(len(texts))
        read = [i for i, text in enumerate(texts) if text.strip()]
        if read:
            name = "sentiment_model"
            values = _scores(name, self._judge([texts[i] for i in read]), len(read))
            worst = values[np.abs(values).argmax()]
            if abs(worst) > 1 + 1e-6:
                raise ValueError(
                    f"{name} returned {worst}: scores must lie in [-1, 1]"
                    " (P(positive) - P(negative), or tanh of a logit)"
                )
            scores[read] = values.clip(-1, 1)
        return scores


def _repeated_bigrams(tokens: Tokens) -> float:
    bigrams = list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    return (len(bigrams) - len(set(bigrams))) / len(bigrams) if bigrams else 0.0


def _scores(name: str, values: npt.ArrayLike, count: int) -> Floats:
    """What a judge or reward term returned, as float64 (count,), or an error that says its fault."""
    scores = np.asarray(values, np.float64)
    if scores.shape != (count,):
        raise ValueError(
            f"{name} returned an array of shape {scores.shape} for {count} texts:"
            f" it must return one float a text, shape ({count},)"
        )
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{name} returned {scores[bad]} for text {bad} of {count}: must be finite")
    return scores


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
