"""Sentiment models: what judges a finished text.

A sentiment model is any callable from texts to scores in [-1, 1]; `load_sentiment_model` makes the named
ones. Heavy libraries are imported only by the model that needs them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class SentimentModel(Protocol):
    """Judges texts: a callable from n strings to n scores in [-1, 1], -1 the most negative."""

    def __call__(self, texts: Sequence[str], /) -> npt.ArrayLike:
        """Scores of shape (n,) for n texts, each P(positive) - P(negative)."""
        ...


class VaderSentiment:
    """The word-list judge of Hutto and Gilbert (2014): the compound score of vaderSentiment.

    It reads one text after the other, but none of the last 65,536 twice.
    """

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Compound scores in [-1, 1], float64 of shape (n,)."""
        return np.array([self._score(text) for text in texts])

    @lru_cache(2**16)  # noqa: B019 - an analyzer is a few word lists, and most processes make one
    def _score(self, text: str) -> float:
        return self._analyzer.polarity_scores(text)["compound"]


class HuggingFaceSentiment:
    """A Hugging Face sequence-classification model as judge: P(positive) - P(negative).

    The labels are read by name from the model's `id2label` (positive/negative, pos/neg, or the pair
    LABEL_0/LABEL_1), never by position. Texts longer than the model's positions are cut, with one
    warning.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        batch_size: int = 64,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> None:
        """Loads tokenizer and model; see `load_sentiment_model` for arguments and errors."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        source: dict[str, Any] = {"local_files_only": local_files_only, "revision": revision}
        if Path(name).is_dir():
            name = str(Path(name))
        elif Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise FileNotFoundError(
                f"sentiment_model={name!r} is not a directory: pass one written by save_pretrained"
                " (config.json, model.safetensors, the tokenizer's files), a hub id, or 'bundled'"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, **source)
            model = AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype, **source)
        except (OSError, ValueError) as error:
            raise OSError(
                f"sentiment_model={name!r} could not be loaded: it is no local directory with a"
                " classifier, and the Hugging Face hub has none of that name or can't be reached."
                " Without a hub pass the path of a directory written by save_pretrained on a"
                f" connected machine, or use 'bundled' or 'vader'. The loader said: {error}"
            ) from error
        self._negative, self._positive = _polar_labels(name, model.config.id2label)
        self._model = model.to(device).eval()
        self._batch_size = batch_size
        self._max_length = min(
            self._tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", self._tokenizer.model_max_length),
        )
        self._warned = False

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """P(positive) - P(negative), float64 of shape (n,), in batches of `batch_size`."""
        import torch

        scores = []
        with torch.inference_mode():
            for start in range(0, len(texts), self._batch_size):
                batch = self._tokenizer(
                    list(texts[start : start + self._batch_size]),
                    padding=True,
                    truncation=True,
                    max_length=self._max_length,
                    return_tensors="pt",
                ).to(self._model.device)
                if batch["input_ids"].shape[1] == self._max_length and not self._warned:
                    self._warned = True
                    logger.warning("the judge reads only %d tokens of a text", self._max_length)
                p = self._model(**batch).logits.double().softmax(-1)
                scores.append((p[:, self._positive] - p[:, self._negative]).cpu().numpy())
        return np.concatenate(scores) if scores else np.zeros(0)


def _polar_labels(name: str, id2label: dict[int, str]) -> tuple[int, int]:
    """The indices of the negative and the positive label, by name.

    Raises:
        ValueError: when the labels don't say which is which.
    """
    labels = {
        int(index): re.sub(r"[^a-z0-9]", "", str(label).lower())
        for index, label in id2label.items()
    }
    for negative, positive in (("negative", "positive"), ("neg", "pos"), ("label0", "label1")):
        if negative == "label0" and len(labels) != 2:
            break  # three nameless labels may stand in any order
        indices = {label: index for index, label in labels.items()}
        if negative in indices and positive in indices:
            return indices[negative], indices[positive]
    raise ValueError(
        f"sentiment_model={name!r} has the labels {list(id2label.values())}, which don't tell positive"
        " from negative: set id2label in its config.json to names such as NEGATIVE and POSITIVE, or"
        " wrap the model in a callable list[str] -> scores in [-1, 1]"
    )


def load_sentiment_model(name: str, **options: Any) -> SentimentModel:
    """Makes a sentiment model by name.

    Args:
        name: `"bundled"` (the network in this package, which gives word salad no credit), `"vader"` (the
            word list of vaderSentiment), or a Hugging Face sequence-classification id or directory.
        **options: for the bundled judge: `device` (`"cpu"`); for a Hugging Face model: `device` (`"auto"`), `dtype` (`"float32"`), `batch_size`
            (64), `local_files_only` (False), `revision`.

    Returns:
        A callable from n texts to n scores in [-1, 1].

    Raises:
        FileNotFoundError: for a path that doesn't exist.
        OSError: when the hub can't be reached; the message says how to go on without one.
        ValueError: when the model's labels can't be understood.
    """
    if name == "bundled":
        from text_sentiment_env.judge import Judge

        return Judge(**options)
    if name == "vader":
        return VaderSentiment(**options)
    return HuggingFaceSentiment(name, **options)


@cache
def shared_sentiment_model(name: str) -> SentimentModel:
    """`load_sentiment_model(name)`, once a process: environments side by side share one judge."""
    return load_sentiment_model(name)
