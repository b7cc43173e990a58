"""The environment's reward as a function of whole texts, for trainers that write texts themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from text_sentiment_env.task import TextSentimentTask, Tokens
from text_sentiment_env.vocabulary import END_OF_TEXT


class RewardFunction:
    """The reward of `TextSentimentEnv` as a callable, in the form of TRL's `reward_funcs`.

        GRPOTrainer(model, reward_funcs=RewardFunction(vocabulary="reviews"), ...)

    A text gets the same reward as in the environment, from the same code. The model's token ids
    must be the actions of `vocabulary`: `"reviews"` for the bundled model, `"gpt2"` for GPT-2 from
    the hub. The trainer's longest completion must be at most `max_tokens`.

    >>> reward = RewardFunction(vocabulary="reviews")
    >>> good, bad = reward(["the movie"] * 2, [" was a great pleasure to watch.", " was bad."])
    >>> good > 0.5, bad < -0.5
    (True, True)

    Attributes:
        task: the rules of the reward, shared with the environments.
    """

    def __init__(self, **arguments: Any) -> None:
        """Checks the arguments and loads the judge.

        Args:
            **arguments: those of `TextSentimentEnv`. Two change nothing: `prompts`, because the
                trainer has its own, and `shaping`, because a whole text is paid at once.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a bad value, naming argument, value and fix.
        """
        self.task = TextSentimentTask(**arguments)
        self.__name__ = "text_sentiment"  # TRL's name for its rewards in logs

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """The rewards of k texts, from one call of the judge.

        Args:
            prompts: the beginnings of the texts. A leading `<|endoftext|>` is left out.
            completions: the texts that follow them, up to their first `<|endoftext|>`.
            completion_ids: the tokens of the completions, as the model wrote them; from the first
                `<|endoftext|>` on they are ignored. None: `completions` are encoded.
            log_metric: receives the mean of each term of the reward, under its name in `info`.
            log_extra: receives the sentiment of each text.
            **_: what trainers pass besides.

        Raises:
            ValueError: for chat messages, a prompt outside the vocabulary, ids that are no actions,
                or a completion longer than `max_tokens`.
        """
        if not len(prompts):
            return []
        begun = [self._encode_prompt(prompt) for prompt in prompts]
        if completion_ids is None:
            written = (text.partition(END_OF_TEXT)[0] for text in completions)
            completion_ids = [self.task.vocabulary.encode(text).tolist() for text in written]
        if len(completion_ids) != len(begun):
            raise ValueError(
                f"{len(begun)} prompts and {len(completion_ids)} completions: give one for each"
            )
        texts = [self._checked(ids) for ids in completion_ids]
        starts = np.array([len(prompt) for prompt in begun])
        width = int(starts.max()) + self.task.max_tokens
        tokens = np.full((len(begun), width), self.task.vocabulary.pad_index, np.int64)
        for row, prompt, ids in zip(tokens, begun, texts, strict=True):
            row[: len(prompt)] = prompt
            row[len(prompt) : len(prompt) + len(ids)] = ids
        rewards, _terms, info = self.task.reward(tokens, starts, np.zeros(len(tokens)))
        if log_metric is not None:
            for name, values in info.items():
                if name != "text":
                    log_metric(name, float(values.mean()))
        if log_extra is not None:
            log_extra("sentiment", info["sentiment"].tolist())
        return rewards.tolist()

    def _encode_prompt(self, prompt: str) -> Tokens:
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must hold strings, got {prompt!r}: chats are not supported")
        return self.task.vocabulary.encode(prompt.removeprefix(END_OF_TEXT))

    def _checked(self, ids: Sequence[int]) -> Tokens:
        """The ids before the first end-of-text, int64 (n,), n at most `max_tokens`."""
        tokens, end = np.asarray(ids), self.task.vocabulary.end_index
        if len(tokens) and tokens.dtype.kind not in "iu":
            raise ValueError(
                f"completion_ids hold numbers of type {tokens.dtype}: they must be whole numbers, the"
                " ids of tokens"
            )
        tokens = tokens.astype(np.int64)
        if (tokens == end).any():
            tokens = tokens[: int((tokens == end).argmax())]
        if len(wrong := tokens[(tokens < 0) | (tokens > end)]):
            raise ValueError(
                f"completion_ids hold {wrong[0]}, but the vocabulary's ids are 0 to {end}: pass"
                " RewardFunction the vocabulary of the model ('reviews' for the bundled one)"
            )
        if len(tokens) > self.task.max_tokens:
            raise ValueError(
                f"a completion has {len(tokens)} tokens, but max_tokens={self.task.max_tokens}: pass"
                " RewardFunction the trainer's max_completion_length as max_tokens"
            )
        return tokens
