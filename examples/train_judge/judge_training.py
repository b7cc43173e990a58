"""How the judge's network learns: texts with soft targets, batches, the loss, and the loop."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from judge_texts import labelled, salad
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from agents.atomic import atomic_write
from text_sentiment_env.judge import SentimentNetwork, Tokenizer, pad

log = logging.getLogger("train_judge")


@dataclass
class Samples:
    """Texts with soft targets; a target of NaN asks for nothing."""

    texts: list[str]
    positive: npt.NDArray[np.float32]  # given that the text is readable
    readable: npt.NDArray[np.float32]

    def __getitem__(self, index: Any) -> Samples:
        texts = np.array(self.texts, dtype=object)[index].tolist()
        return Samples(texts, self.positive[index], self.readable[index])

    def __add__(self, other: Samples) -> Samples:
        return Samples(
            self.texts + other.texts,
            np.concatenate([self.positive, other.positive]),
            np.concatenate([self.readable, other.readable]),
        )


def readable(texts: list[str], positive: npt.ArrayLike) -> Samples:
    return Samples(texts, np.asarray(positive, np.float32), np.ones(len(texts), np.float32))


def unreadable(texts: list[str]) -> Samples:
    return Samples(texts, np.full(len(texts), np.nan, np.float32), np.zeros(len(texts), np.float32))


def mix(
    logits: npt.NDArray[np.float32], label: npt.NDArray[np.float32], share: float
) -> npt.NDArray[np.float32]:
    """The teacher's probability, with a share of the true label where there is one."""
    teacher = 1 / (1 + np.exp(-logits))
    return np.where(np.isnan(label), teacher, (1 - share) * teacher + share * label)


def made_by_program(pool: Sequence[str], sizes: tuple[int, int], rng: random.Random) -> Samples:
    """Fresh labelled sentences and fresh salads, as many as `sizes` says."""
    texts, targets = zip(*labelled(sizes[0], rng), strict=True)
    return readable(list(texts), targets) + unreadable(salad(sizes[1], pool, rng))


def batches(
    rows: Sequence[Sized], size: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Random batches of texts of like length, in random order."""
    lengths = np.array([len(row) for row in rows])
    order = np.lexsort((rng.random(len(rows)), lengths))  # by length, ties at random
    order = order[lengths[order] > 0]
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    return [chunks[i] for i in rng.permutation(len(chunks))]


def loss_of(
    network: SentimentNetwork, ids: Tensor, samples: Samples, index: Any, readable_weight: float
) -> Tensor:
    """Cross-entropy of both heads against their soft targets; the second's has a weight."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        outputs = network(ids)
    loss = torch.zeros((), device=ids.device)
    targets = (1.0, samples.positive), (readable_weight, samples.readable)
    for logits, (weight, target) in zip(outputs, targets, strict=True):
        wanted = torch.from_numpy(target[index]).to(ids.device)
        known = ~wanted.isnan()
        losses = F.binary_cross_entropy_with_logits(
            logits.float()[known], wanted[known], reduction="sum"
        )
        loss = loss + weight * losses / len(index)
    return loss


def schedule(learning_rate: float, done: float, step: float) -> float:
    """The learning rate at a share of all steps: 200 steps of warm-up, then a cosine to 2 %."""
    warm_up = min(1.0, (step + 1) / 200)
    return learning_rate * warm_up * (0.02 + 0.98 * math.cos(math.pi * done / 2) ** 2)


class Trainer:
    """AdamW with a cosine schedule, and the running average of the weights that is kept."""

    def __init__(self, network: SentimentNetwork, tokenizer: Tokenizer, args: Any) -> None:
        self.network, self.tokenizer, self.args = network, tokenizer, args
        self.device = next(network.parameters()).device
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def fit(
        self,
        fixed: Samples,
        fresh: Callable[[int], Samples],
        epochs: int,
        learning_rate: float,
        checkpoint: Path,
    ) -> None:
        """Trains on `fixed` and on what `fresh(epoch)` makes for each epoch; resumes."""
        network, args = self.network, self.args
        optimizer = torch.optim.AdamW(
            network.parameters(), learning_rate, weight_decay=0.01, fused=True
        )
        first = 0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            self.average, first = state["average"], state["epoch"]
        rows = self.tokenizer(fixed.texts)
        network.train()
        for epoch in range(first, epochs):
            made = fresh(epoch)
            # A generator of its own for each epoch: a resumed run draws what the whole run drew.
            rng = np.random.default_rng((args.seed, epoch))
            torch.manual_seed(args.seed * 1000 + epoch)
            samples, all_rows = fixed + made, rows + self.tokenizer(made.texts)
            order = batches(all_rows, args.batch_size, rng)
            losses = []
            bar = tqdm(order, desc=f"epoch {epoch + 1}/{epochs}", mininterval=10)
            for step, index in enumerate(bar):
                done = (epoch + step / len(order)) / epochs
                rate = schedule(learning_rate, done, done * len(order) * epochs)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                ids = pad([all_rows[i] for i in index])
                ids[(rng.random(ids.shape) < args.word_dropout) & (ids != 0)] = 1
                on_device = torch.from_numpy(ids).to(self.device)
                loss = loss_of(network, on_device, samples, index, args.readable_weight)
                self._descend(loss, optimizer)
                losses.append(loss.item())
                if step % 200 == 0:
                    bar.set_postfix(loss=f"{np.mean(losses[-400:]):.4f}")
            loss_now = np.mean(losses[-2000:])
            log.info("epoch %d: loss %.4f on %d texts", epoch + 1, loss_now, len(rows))
            self._save(checkpoint, optimizer, epoch + 1)

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        optimizer.step()
        self._update_average()

    def _save(self, path: Path, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": self.average,
            "epoch": epoch,
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    @torch.no_grad()
    def _update_average(self) -> None:
        average = list(self.average.values())
        torch._foreach_lerp_(average, list(self.network.state_dict().values()), 0.001)
