"""Sentiment models: the judges of finished texts.

A sentiment model is any callable from texts to scores in [-1, 1]. `load_sentiment_model` makes one by
name. Heavy libraries are imported only by the model that needs them.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from text_sentiment_env import checks
from text_sentiment_env.hub import hub_error, nearest

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_NAMES = ("bundled", "vader")


class SentimentModel(Protocol):
    """A callable from n texts to n scores in [-1, 1], -1 the most negative."""

    def __call__(self, texts: Sequence[str], /) -> npt.ArrayLike:
        """Scores of shape (n,) for n texts, each P(positive) - P(negative)."""
        ...


class VaderSentiment:
    """The word-list judge of Hutto and Gilbert (2014): the compound score of vaderSentiment.

    It scores one text after the other and remembers the scores of the last 65,536.
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
    warning. Loading runs no code that came with the model.
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
        allow_pickle: bool = False,
    ) -> None:
        """Loads tokenizer and model; see `load_sentiment_model` for arguments and errors."""
        self._batch_size = checks.whole_number("batch_size", batch_size, least=1)
        device = checks.torch_device(device)
        dtype = checks.torch_dtype(dtype)
        source: dict[str, Any] = {
            "revision": None if revision is None else checks.text("revision", revision),
            "local_files_only": checks.boolean("local_files_only", local_files_only),
            "trust_remote_code": False,  # None would ask on the terminal
        }
        weights = {
            "use_safetensors": None if checks.boolean("allow_pickle", allow_pickle) else True
        }
        self._tokenizer, model = _load_pretrained(name, source, {"dtype": dtype, **weights})
        self._negative, self._positive = _polar_labels(name, model.config.id2label)
        self._model = model.to(device).eval()
        if self._tokenizer.pad_token is None:
            raise ValueError(
                f"sentiment_model={name!r}: its tokenizer has no pad token, so it cannot batch texts; set"
                " tokenizer.pad_token and save the tokenizer again"
            )
        # A text's score must not depend on those beside it: positions that are counted from the left
        # want the padding on the right, and XLNet reads its last token.
        self._tokenizer.padding_side = "left" if model.config.model_type == "xlnet" else "right"
        model.config.pad_token_id = self._tokenizer.pad_token_id
        most = min(self._tokenizer.model_max_length, _positions(model))
        self._max_length = None if most > 10**9 else int(most)  # transformers' "unknown" is 1e30
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
                    truncation=self._max_length is not None,
                    max_length=self._max_length,
                    return_tensors="pt",
                ).to(self._model.device)
                if batch["input_ids"].shape[1] == self._max_length and not self._warned:
                    self._warned = True
                    logger.warning("the judge reads only %d tokens of a text", self._max_length)
                p = self._model(**batch).logits.double().softmax(-1)
                scores.append((p[:, self._positive] - p[:, self._negative]).cpu().numpy())
        return np.concatenate(scores) if scores else np.zeros(0)


def _positions(model: Any) -> float:
    """How many tokens a classifier reads; any number if its config names none."""
    positions = getattr(model.config, "max_position_embeddings", math.inf)
    if positions < 1:  # XLNet's -1
        return math.inf
    # RoBERTa and its kin count from behind the padding's index.
    padding = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return positions if padding is None else positions - padding - 1


def _load_pretrained(name: str, source: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """The tokenizer and the classifier of a directory, of the hub, or of the hub's cache.

    Args:
        name: a directory, or a model's id on the hub.
        source: keywords of both `from_pretrained`, among them `local_files_only` and `revision`.
        options: keywords of the classifier's `from_pretrained`.

    Raises:
        ValueError: for a name that is no id, and a classifier whose head isn't in its files.
        FileNotFoundError: for a path that doesn't exist.
        OSError: when the files are missing, damaged, or want to run code.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    hub = None
    if os.path.isdir(name):  # False, where Path raises, for a name that is too long for a path
        name = str(Path(name))
        source = source | {"local_files_only": True}
    else:
        _check_model_id(name)
        if not source["local_files_only"]:
            hub = hub_error(name, source["revision"])
            source = source | {"local_files_only": hub is not None}  # the cache is left
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options, **source
        )
    except Exception as error:  # the loader raises errors of any kind about files of any kind
        raise OSError(_advice(name, hub, options["use_safetensors"], error)) from error
    if report["missing_keys"]:
        raise ValueError(
            f"sentiment_model={name!r} has no trained classification head: its files lack"
            f" {', '.join(sorted(report['missing_keys']))}, which would be random numbers. Choose a"
            " model that was fine-tuned for sentiment"
        )
    return tokenizer, model


def _check_model_id(name: str) -> None:
    """Raises an error for a name that can't be on the hub, or that is nearly one of our own."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"sentiment_model={name!r} is not a directory: pass one written by save_pretrained"
            " (config.json, model.safetensors, the tokenizer's files), a hub id, or 'bundled'"
        )
    if near := nearest(name, _NAMES):
        raise ValueError(
            f"sentiment_model={name!r} is unknown: did you mean {near!r}? Other values are a"
            " Hugging Face id or directory, or a callable list[str] -> scores in [-1, 1]"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"sentiment_model={name!r} is no name on the Hugging Face hub: use 'bundled', 'vader',"
            f" an id such as 'owner/model', or a directory. {error}"
        ) from None


def _advice(name: str, hub: Exception | None, safetensors: bool | None, error: Exception) -> str:
    """The message about a model that couldn't be loaded: the fix and the causes."""
    message = f"sentiment_model={name!r} could not be loaded"
    if hub is not None:
        message += (
            ": it is no directory, is not in the local cache, and the Hugging Face hub doesn't have"
            " it or can't be reached. Without a hub pass the path of a directory written by"
            f" save_pretrained on a connected machine, or use 'bundled' or 'vader'. The hub: {hub}"
        )
    else:
        message += (
            ": it needs config.json, the tokenizer's files and model.safetensors, as save_pretrained"
            " writes them, undamaged"
        )
    if "trust_remote_code" in str(error):
        message += ". It asks to run code of its own, which is never done"
    elif safetensors:
        message += ". A pytorch_model.bin (a pickle) is read only with allow_pickle=True"
    return f"{message}. The loader: {type(error).__name__}: {error}"


def _polar_labels(name: str, id2label: dict[int, str]) -> tuple[int, int]:
    """The indices of the negative and the positive label, by name.

    Raises:
        ValueError: when the labels don't tell positive from negative.
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


def load_sentiment_model(name: str | os.PathLike[str], **options: Any) -> SentimentModel:
    """Makes a sentiment model by name.

    No code that comes with a model runs: remote code is refused, and weights are read from
    safetensors files.

    Args:
        name: `"bundled"` (the network in this package, which gives word salad no credit), `"vader"`
            (the word list of vaderSentiment), or a Hugging Face sequence-classification id or
            directory. The hub is asked last, for three seconds; then its local cache is used.
        **options: for the bundled judge `device` (`"cpu"`). For a Hugging Face model `device`
            (`"auto"`), `dtype` (`"float32"`), `batch_size` (64), `local_files_only` (False),
            `revision` (None) and `allow_pickle` (False): True also reads weights from a
            `pytorch_model.bin`, which you should do only with a file that you trust.

    Returns:
        A callable from n texts to n scores in [-1, 1].

    Raises:
        FileNotFoundError: for a path that doesn't exist.
        OSError: when files are missing or damaged, or the hub can't be reached; the message says
            how to go on without one.
        TypeError: for an unknown option.
        ValueError: for an unknown name or a bad option, when the model's labels don't tell positive
            from negative, and when its classification head is untrained.
    """
    name = checks.text(
        "sentiment_model", os.fspath(name) if isinstance(name, os.PathLike) else name
    )
    if not name:
        raise ValueError(
            "sentiment_model='' names nothing: use 'bundled', 'vader', or a Hugging Face id or directory"
        )
    if name == "bundled":
        from text_sentiment_env.judge import Judge

        return Judge(**options)
    if name == "vader":
        return VaderSentiment(**options)
    return HuggingFaceSentiment(name, **options)


def shared_sentiment_model(name: str) -> SentimentModel:
    """`load_sentiment_model(name)`, once per process, so that environments share one judge.

    A directory whose files have changed since is loaded again.
    """
    if not os.path.isdir(name):
        return _shared(name, ())
    with os.scandir(name) as files:
        state = tuple(sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files))
    return _shared(os.path.realpath(name), state)


@lru_cache(maxsize=8)
def _shared(name: str, state: tuple[Any, ...]) -> SentimentModel:
    """`state` tells versions of a directory apart."""
    return load_sentiment_model(name)
