"""Calibrating a trained judge, and the figures of its model card."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from judge_data import as_written
from judge_texts import SALADS
from torch import Tensor
from torch.nn import functional as F

from text_sentiment_env.judge import Judge, SentimentNetwork, Tokenizer, pad
from text_sentiment_env.vocabulary import Vocabulary


def calibrate(
    network: SentimentNetwork, tokenizer: Tokenizer, rows: Sequence[tuple[str, int]]
) -> tuple[float, float]:
    """Divides the sentiment logits by a temperature and adds a bias, those that suit the labels best.

    The bias matters: teachers and students lean to one side on texts unlike those they learned from.

    Returns:
        The temperature and the bias (Platt 1999).
    """
    network.to("cpu").eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(pad(tokenizer([text for text, _ in rows]))))[0]
    logits, labels = logits.clone(), torch.tensor([float(label) for _, label in rows])
    log_temperature, bias = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature, bias], max_iter=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(logits / log_temperature.exp() + bias, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    temperature = log_temperature.exp().item()
    with torch.no_grad():
        weight, intercept = network.sentiment[-1].parameters()
        weight.div_(temperature)
        intercept.div_(temperature).add_(bias)
    return temperature, bias.item()


def accuracy(judge: Judge, rows: Sequence[tuple[str, int]]) -> float:
    """The share of texts whose score has the sign of their label, in percent."""
    scores, labels = judge([text for text, _ in rows]), np.array([label for _, label in rows])
    return round(100 * float(((scores > 0) == (labels == 1)).mean()), 2)


def reliability(judge: Judge, rows: Sequence[tuple[str, int]]) -> list[dict[str, float]]:
    """Ten bins of P(positive) with their share of positive labels, and the calibration error."""
    positive = (judge([text for text, _ in rows]) + 1) / 2
    labels = np.array([label for _, label in rows])
    bins = np.minimum((10 * positive).astype(int), 9)
    return [
        {
            "from": b / 10,
            "texts": int((bins == b).sum()),
            "predicted": round(float(positive[bins == b].mean()), 3),
            "observed": round(float(labels[bins == b].mean()), 3),
        }
        for b in range(10)
        if (bins == b).any()
    ]


def milliseconds(judge: Judge) -> float:
    """Time for 64 texts of 20 tokens, the best of 20 calls."""
    vocabulary, rng = Vocabulary.load("small"), np.random.default_rng(0)
    texts = [vocabulary.decode(row) for row in rng.integers(0, vocabulary.end_index, (64, 20))]
    durations = []
    for _ in range(20):
        begin = time.perf_counter()
        judge(texts)
        durations.append(time.perf_counter() - begin)
    return round(1000 * min(durations), 1)


def measure(judge: Judge, sets: dict[str, list[tuple[str, int]]]) -> dict[str, Any]:
    """Figures for the model card."""
    report: dict[str, Any] = {}
    for name, rows in sets.items():
        report[name] = {
            "accuracy": accuracy(judge, rows),
            "reliability": reliability(judge, rows),
        }
    # Kinds of salad seen in training, from sentences and seeds that were not.
    pool = [as_written(text) for text, _ in sets["dev"]]
    report["salad"] = {
        kind.__name__.strip("_"): round(
            float(
                (np.abs(judge([kind(random.Random(i), pool) for i in range(200)])) <= 0.3).mean()
            ),
            3,
        )
        for kind in SALADS
    }
    report["milliseconds_64x20"] = milliseconds(judge)
    return report
