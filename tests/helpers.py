"""What several test modules share."""

import numpy as np

import text_sentiment_env  # noqa: F401  (registers the id)


def letters(texts):
    """A judge that costs nothing and tells texts apart: a score from their characters."""
    return np.array([np.sin(sum(map(ord, text))) for text in texts])


class Recorder:
    """A judge that keeps what it was asked."""

    def __init__(self, judge=letters):
        self.calls, self.judge = [], judge

    def __call__(self, texts):
        self.calls.append(list(texts))
        return self.judge(texts)
