"""Looking for a judge's holes: REINFORCE without anything that holds the writer back.

`hunt` trains a copy of a language model on the judge's score alone (no KL, no entropy bonus). What
it writes at the end shows what the judge can be made to pay for; perplexity under the start model
tells whether that is language. Plain on purpose, and without the environment, so that a judge can
be trained before any agent is.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from text_sentiment_env.vocabulary import Vocabulary

if TYPE_CHECKING:
    from agents.gpt2 import GPT2

Score = Callable[[Sequence[str]], npt.NDArray[np.float64]]


class Find(NamedTuple):
    """A text that a writer tried."""

    text: str
    score: float
    nll: float  # under the start model, nats per token
    worst: float  # of its tokens
    repeated_tokens: float  # the share that occurred before
    repeated_pairs: float


class Hunt(NamedTuple):
    """What came of one run."""

    finds: list[Find]  # every different text of the run
    report: dict[str, Any]  # of fresh samples at the end


class Writer:
    """A language model over a vocabulary, which writes texts from nothing."""

    def __init__(self, gpt2: GPT2, max_tokens: int) -> None:
        self.gpt2, self.max_tokens = gpt2, max_tokens
        if gpt2.token_ids is None or gpt2.end_index is None:
            raise ValueError("the start model needs token_ids with <|endoftext|>: use 'reviews'")
        self.token_ids, self.end = gpt2.token_ids, gpt2.end_index
        self.vocabulary = Vocabulary(self.token_ids)
        # Vocabulary keeps <|endoftext|> last, the model may not: rows to actions.
        ordinary = [row for row in range(len(self.token_ids)) if row != self.end]
        self.action = np.empty(len(self.token_ids), np.int64)
        self.action[[*ordinary, self.end]] = np.arange(len(self.token_ids))

    def write(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
        """Ids with the first `<|endoftext|>` (B, 1 + T), which were chosen (B, T), and texts."""
        start = torch.full((rows, 1), self.end)
        new = self.gpt2.generate(start, self.max_tokens, generator=generator)
        # Chosen are the tokens before the end and the end itself; the rest fills up.
        chosen = (new == self.end).long().cumsum(1) - (new == self.end).long() == 0
        texts = [self.vocabulary.decode(row) for row in self.action[new.numpy()]]
        return torch.cat([start, new], 1), chosen, texts

    @staticmethod
    def log_probabilities(gpt2: GPT2, ids: Tensor) -> Tensor:
        """Log-probability of each id after the first, (B, T)."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = gpt2(ids[:, :-1])
        return -F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")


def repetition(ids: Sequence[int]) -> tuple[float, float]:
    """The shares of the tokens and of the pairs of tokens that occurred before."""
    pairs = list(itertools.pairwise(ids))
    return (
        1 - len(set(ids)) / max(1, len(ids)),
        1 - len(set(pairs)) / max(1, len(pairs)),
    )


def distinct_2(texts: Sequence[str]) -> float:
    """Different pairs of words as a share of all pairs of words in the texts."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    return len(set(pairs)) / max(1, len(pairs))


@torch.no_grad()
def usual_nll(start: GPT2, max_tokens: int = 20) -> float:
    """The start model's own texts under itself, nats per token."""
    writer = Writer(start, max_tokens)
    ids, chosen, _ = writer.write(512, torch.Generator().manual_seed(0))
    return float(-(writer.log_probabilities(start, ids) * chosen).sum() / chosen.sum())


def hunt(
    start: GPT2,
    judge: Score,
    *,
    updates: int = 150,
    rows: int = 64,
    max_tokens: int = 20,
    learning_rate: float = 5e-4,
    seed: int = 0,
    name: str = "hunt",
) -> Hunt:
    """REINFORCE with a leave-one-out baseline and no KL, from `start`, against `judge`.

    The reward is the environment's default: the score, less half of how far the text falls short of
    8 tokens as a share of `max_tokens`.
    """
    writer = Writer(copy.deepcopy(start), max_tokens)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(writer.gpt2.parameters(), learning_rate, weight_decay=0.0)
    finds: dict[str, Find] = {}

    @torch.no_grad()
    def note(ids: Tensor, chosen: Tensor, texts: list[str], scores: npt.NDArray[Any]) -> Tensor:
        logp = writer.log_probabilities(start, ids) * chosen
        per_token, worst = (-logp.sum(1) / chosen.sum(1)).tolist(), (-logp).amax(1).tolist()
        for i, text in enumerate(texts):
            repeated = repetition(ids[i, 1:][chosen[i]].tolist())
            finds[text] = Find(text, float(scores[i]), per_token[i], worst[i], *repeated)
        return logp

    for _ in (bar := tqdm(range(updates), desc=name, mininterval=5)):
        ids, chosen, texts = writer.write(rows, generator)
        scores = judge(texts)
        note(ids, chosen, texts, scores)
        rewards = torch.from_numpy(scores).float() - _shortfall(ids, chosen, writer)
        advantages = (rewards - rewards.mean()) * rows / (rows - 1)  # less the mean of the others
        logp = writer.log_probabilities(writer.gpt2, ids)
        loss = -(advantages[:, None] * logp * chosen).sum() / rows
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(writer.gpt2.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(reward=f"{rewards.mean():.2f}")
    return Hunt(list(finds.values()), _report(writer, judge, note, generator))


def _shortfall(ids: Tensor, chosen: Tensor, writer: Writer) -> Tensor:
    length = ((ids[:, 1:] != writer.end) & chosen).sum(1)
    return 0.5 * (8 - length).clamp(min=0) / writer.max_tokens


def _report(writer: Writer, judge: Score, note: Any, generator: torch.Generator) -> dict[str, Any]:
    """Figures of 512 fresh texts, and eight of them."""
    ids, chosen, texts = writer.write(512, generator)
    scores = judge(texts)
    logp = note(ids, chosen, texts, scores)
    return {
        "sentiment": round(float(scores.mean()), 3),
        "perplexity": round(math.exp(-logp.sum().item() / chosen.sum().item()), 1),
        "distinct_2": round(distinct_2(texts), 3),
        "distinct_texts": round(len(set(texts)) / len(texts), 3),
        "length": round(float(((ids[:, 1:] != writer.end) & chosen).sum(1).float().mean()), 1),
        "samples": texts[:8],
    }
