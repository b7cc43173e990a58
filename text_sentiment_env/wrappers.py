"""Wrappers for libraries that expect other things of an environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from text_sentiment_env.env import TextSentimentEnv
from text_sentiment_env.task import Tokens


class InfoAtEveryStep(gym.Wrapper[Tokens, Any, Tokens, Any], RecordConstructorArgs):
    """Gives `step` the same info keys at every step, for libraries that store them in arrays.

    `TextSentimentEnv` reports a text at its end only. Before that the wrapper reports an empty
    text and zeros. tianshou needs it: its replay buffer fills missing texts with None and then
    refuses itself.

    >>> import gymnasium as gym
    >>> import text_sentiment_env
    >>> env = InfoAtEveryStep(gym.make("TextSentiment-v0"))
    >>> observation, info = env.reset(seed=0)
    >>> info
    {'prompt': ''}
    >>> env.step(0)[4]
    {'text': '', 'sentiment': 0.0, 'length_penalty': 0.0, 'repetition_penalty': 0.0, 'length': 0}
    """

    def __init__(self, env: gym.Env[Tokens, Any]) -> None:
        """Wraps an environment.

        Raises:
            ValueError: for another environment than `TextSentimentEnv`, wrapped or not.
        """
        RecordConstructorArgs.__init__(self)  # so that its spec can make it again
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, TextSentimentEnv):
            raise ValueError(f"env={env} must be TextSentiment-v0")
        penalties = {"sentiment": 0.0, "length_penalty": 0.0, "repetition_penalty": 0.0}
        extra_terms = dict.fromkeys(inner.task.extra_terms, 0.0)
        self._empty: dict[str, Any] = {"text": ""} | penalties | {"length": 0} | extra_terms

    def step(self, action: Any) -> tuple[Tokens, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with all keys."""
        *step, info = self.env.step(action)
        return (*step, self._empty | info)  # type: ignore[return-value]
