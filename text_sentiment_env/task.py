"""The rules of the task, each in one place: prompts, the end of a text, and the reward.

`TextSentimentEnv` and `TextSentimentVectorEnv` keep the state of their texts. Both apply the rules
in this file, which work on any number of rows at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from text_sentiment_env import checks
from text_sentiment_env.sentiment import SentimentModel, shared_sentiment_model
from text_sentiment_env.vocabulary import Vocabulary

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

# Names that an extra term may not have: those of this environment, of Gymnasium and its wrappers.
_OUR_KEYS = ("prompt", "text", "sentiment", "length_penalty", "repetition_penalty", "length")
# Then the measures of `agents.evaluation` and the columns of monitor.csv, which an info's numbers join.
_MEASURES = (
    *("reward", "kl", "tokens", "episodes", "samples", "reward_standard_error", "end_rate"),
    *("entropy", "perplexity", "distinct_1", "distinct_2", "distinct_texts", "win_rate", "gap"),
    *("gap_standard_error", "effective_samples", "key", "r", "l", "t", "log_prob", "vader"),
    *("update", "ep_rew_mean", "ep_rew_std", "ep_len_mean", "terminal_observation"),
    *("when", "count", "file", "allow_pickle"),  # the last two are arguments of numpy.savez
)
RESERVED = (*_OUR_KEYS, "episode", "final_obs", "final_info", *_MEASURES)


class TextSentimentTask:
    """The task that the arguments of `gym.make("TextSentiment-v0")` define.

    `TextSentimentEnv` explains the arguments.

    Attributes:
        vocabulary, max_tokens, prompts, ...: the arguments, checked.
        prompt_length: the tokens of the longest prompt, p.
        action_space: `Discrete(V)`.
        observation_space: `Box(0, V, (L,), int64)`, L = p + `max_tokens`.
    """

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
        **unknown: Any,
    ) -> None:
        """Checks every argument and loads the judge.

        Raises:
            TypeError: for an unknown argument. It names the environment, because users name that.
            ValueError: naming the argument, its value and the fix.
        """
        if unknown:
            known = [name for name in signature(TextSentimentTask).parameters if name != "unknown"]
            raise TypeError(
                f"TextSentiment-v0 has no argument {', '.join(map(repr, unknown))}: beside"
                f" render_mode it has {', '.join(known)}"
            )
        self.vocabulary = Vocabulary.load(vocabulary)
        self.max_tokens = checks.whole_number("max_tokens", max_tokens, least=1)
        checks.memory("max_tokens", self.max_tokens, rows=1, width=self.max_tokens)
        self.prompts = _read_prompts(prompts)
        self.reward_type = checks.one_of("reward_type", reward_type, ("graded", "binary"))
        self.target = checks.one_of("target", target, ("positive", "negative"))
        self.length_penalty = checks.weight("length_penalty", length_penalty)
        self.repetition_penalty = checks.weight("repetition_penalty", repetition_penalty)
        self.target_length = checks.length_range("target_length", target_length)
        self.extra_terms = checks.named_functions("extra_terms", extra_terms, RESERVED)
        self.shaping = checks.boolean("shaping", shaping)
        self._length_penalties = self._tabulate_length_penalties()
        encoded = [self._encode("prompts", prompt) for prompt in self.prompts]
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
        # Pickles stay small: a judge with a name is loaded again instead.
        state = self.__dict__.copy()
        if isinstance(self.sentiment_model, str):
            del state["_judge"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_judge" not in state:
            self._judge = _load_judge(self.sentiment_model)

    def _tabulate_length_penalties(self) -> Floats:
        """The penalty of every length from 0 to `max_tokens`, float64 (max_tokens + 1,)."""
        lengths = np.arange(self.max_tokens + 1)
        outside = np.abs(lengths - lengths.clip(*self.target_length))
        penalties = self.length_penalty * outside / self.max_tokens
        if penalties.max() > 1e30:
            raise ValueError(
                f"length_penalty={self.length_penalty} gives a penalty of {penalties.max():g} with"
                f" target_length={self.target_length}: choose smaller ones, so that it is at most"
                " 1e30"
            )
        return penalties

    # ------------------------------------------------------------------------------------ prompts

    def _encode(self, name: str, prompt: str) -> Tokens:
        try:
            return self.vocabulary.encode(prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {prompt!r} can't be encoded: {error}") from None

    def _pad(self, tokens: Tokens) -> Tokens:
        padded = np.full(self.prompt_length, self.vocabulary.pad_index, np.int64)
        padded[: len(tokens)] = tokens
        return padded

    def _tokens_of(self, prompt: str) -> tuple[Tokens, int]:
        row = self._prompt_rows.get(checks.text("options['prompt']", prompt))
        if row is not None:
            return self._prompt_tokens[row], self._prompt_lengths[row]
        tokens = self._encode("options['prompt']", prompt)
        if len(tokens) > self.prompt_length:
            raise ValueError(
                f"options['prompt']={prompt!r} has {len(tokens)} tokens, but observations leave"
                f" room for {self.prompt_length}, the longest of `prompts`: shorten it, or make"
                " the environment with prompts=[...] that holds one as long"
            )
        return self._pad(tokens), len(tokens)

    def start(
        self, generators: Collection[np.random.Generator], given: Sequence[str | None] | None = None
    ) -> tuple[npt.NDArray[np.object_], Tokens, Tokens]:
        """The prompts of k new episodes: each is given or drawn.

        Args:
            generators: k generators; each draws its own episode's prompt.
            given: k prompts, None where one is to be drawn; None draws all.

        Returns:
            The prompts (k,), their tokens int64 (k, p), padded to the longest of `prompts`, and
            their numbers of tokens int64 (k,).

        Raises:
            ValueError: for a prompt that is not text, is outside the vocabulary or too long.
        """
        count, k = len(self.prompts), len(generators)
        rows = np.zeros(k, np.int64)
        if count > 1:  # a single prompt needs no draw and leaves the generators alone
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
        """Whether a text is finished with `action` as its `steps`-th token (scalars or arrays)."""
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
            tokens: the observations of the texts, prompts included, int64 (k, L).
            starts: the length of each prompt, int64 (k,).
            potential: the sentiment term that each text has been paid so far, float64 (k,); 0
                without shaping.
            ended: the texts that are finished, bool (k,); None: all. An unfinished text gets only
                the increment of its sentiment term: potential-based shaping (Ng, Harada and
                Russell 1999) with discount 1.

        Returns:
            Rewards float64 (k,), sentiment terms float64 (k,), and the info of the finished texts,
            arrays with one item for each of them.

        Raises:
            ValueError: when the judge or an extra term returns no proper scores.
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
        # <|endoftext|> and PAD are the two highest indices: all below are text.
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
            info[name] = checks.scores(f"extra_terms[{name!r}]", function(list(texts)), len(texts))
            rewards[finished] += info[name]
        return rewards, term, info

    def _sentiment(self, texts: list[str]) -> Floats:
        """The judge's scores (k,). An empty text is neutral, and the judge doesn't see it."""
        read = list(filter(str.strip, texts))
        if not read:
            return np.zeros(len(texts))
        scores = checks.scores("sentiment_model", self._judge(read), len(read), largest=1)
        if len(read) < len(texts):
            scores, of_read = np.zeros(len(texts)), scores
            scores[[bool(text.strip()) for text in texts]] = of_read
        return scores


class TaskAttributes:
    """The attributes of a task that both environments show as their own."""

    task: TextSentimentTask

    @property
    def vocabulary(self) -> Vocabulary:
        """The action set."""
        return self.task.vocabulary

    @property
    def max_tokens(self) -> int:
        """The most tokens of an episode."""
        return self.task.max_tokens

    @property
    def prompts(self) -> list[str]:
        """The prompts that `reset` draws from."""
        return self.task.prompts


def _repeated_bigrams(tokens: Tokens) -> float:
    """The share of bigrams that occurred earlier in the text; 0 without bigrams."""
    bigrams = list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    return (len(bigrams) - len(set(bigrams))) / len(bigrams) if bigrams else 0.0


def _load_judge(sentiment_model: str | os.PathLike[str] | SentimentModel) -> SentimentModel:
    """The judge of a name or path, shared by every environment of the process, or a callable."""
    if isinstance(sentiment_model, str | os.PathLike):
        return shared_sentiment_model(os.fspath(sentiment_model))
    if not callable(sentiment_model):
        raise ValueError(
            f"sentiment_model={sentiment_model!r} is neither a name nor a callable: use 'bundled',"
            " 'vader', a Hugging Face id or directory, or a callable list[str] -> scores in [-1, 1]"
        )
    return sentiment_model


def _read_prompts(prompts: Sequence[str] | str | os.PathLike[str] | None) -> list[str]:
    """The prompts of a list, or of a text file with one a line; no prompt is the empty one."""
    if prompts is None:
        return [""]
    if isinstance(prompts, str | os.PathLike):
        source = f"prompts={os.fspath(prompts)!r}"
        # Not splitlines, which also splits at characters within a line, such as U+2028.
        text = _read_text(source, Path(prompts))
        lines = [line.rstrip() for line in re.split(r"\r\n|\r|\n", text)]
        found = [line for line in lines if line]
        fix = "write one a line, or use None"
    else:
        source = f"prompts={prompts!r}"
        found = checks.texts("prompts", prompts, "None, a path or a list of strings")
        fix = "pass at least one string, or None"
    if not found:
        raise ValueError(f"{source} holds no prompt: {fix}")
    return found


def _read_text(source: str, path: Path) -> str:
    """A file's text in UTF-8, less its byte order mark, or an error about `source`."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise ValueError(
            f"{source} is not a file that can be read: pass a text file with one prompt a line, or"
            f" a list of strings. {error}"
        ) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source} holds bytes in line {line} that are not UTF-8: save the file as UTF-8"
        ) from None
