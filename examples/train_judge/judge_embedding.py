"""The rows of the judge's embedding: where they begin, and what rare tokens get after training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from text_sentiment_env.judge import Tokenizer
from text_sentiment_env.vocabulary import GPT2_VOCABULARY_SIZE, gpt2_token_bytes

States = Callable[[Sequence[str]], npt.NDArray[np.float32]]

RIDGE = 300  # chosen on 2,000 tokens left out of the fit: 30 to 3,000 explain as much of their rows
OWN = 40  # chosen on SST-2's dev set among 20, 40 and 80


def count_tokens(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """How often each GPT-2 token occurs in the lower-cased texts, (50257,)."""
    everything, counts = Tokenizer(range(GPT2_VOCABULARY_SIZE)), np.zeros(GPT2_VOCABULARY_SIZE, int)
    for text in texts:
        np.add.at(counts, everything([text])[0] - 2, 1)
    return counts


def most_frequent_tokens(texts: Iterable[str], size: int) -> list[int]:
    """The `size` GPT-2 tokens that cover most of the lower-cased texts, in order of their id."""
    counts = count_tokens(texts)
    found = np.argsort(-counts, kind="stable")[:size]
    return sorted(found[counts[found] > 0].tolist())


def lower_case_tokens() -> list[int]:
    """The GPT-2 tokens that words of lower-cased English are made of."""
    words = [token.decode(errors="replace") for token in gpt2_token_bytes()]
    return [
        i for i, w in enumerate(words) if w.isascii() and w == w.lower() and w.strip().isalpha()
    ]


def embed_tokens(states: States, token_ids: Sequence[int], width: int) -> Tensor:
    """The teacher's state for each token, on its `width` main axes; (tokens + 2, width).

    The student then starts with a notion of which words are alike; rows 0 and 1 (padding, unknown)
    are zero.
    """
    values = torch.from_numpy(states(_words(token_ids)))
    values -= values.mean(0)
    _, _, axes = torch.linalg.svd(values, full_matrices=False)
    projected = values @ axes[:width].T
    table = torch.zeros(len(token_ids) + 2, width)
    table[2:, : projected.shape[1]] = 0.3 * projected / projected.std()
    return table


def complete_embedding(
    states: States, token_ids: Sequence[int], table: Tensor, counts: npt.NDArray[np.int64]
) -> tuple[list[int], Tensor]:
    """Rows for all lower-case tokens, and better ones for tokens that training hardly saw.

    A linear map from the teacher's states to the trained rows (ridge regression, a token seen n
    times weighs n / (n + 10)) says where a token of that meaning belongs. A token keeps n / (n +
    `OWN`) of its own row and gets the rest from the map; one that training never saw gets all.

    Args:
        states: the teacher's states of some words, (k, S).
        token_ids: the trained tokens.
        table: their rows, behind those of padding and unknown, (tokens + 2, width).
        counts: how often training saw each GPT-2 token, (50257,).

    Returns:
        The tokens, in order of their id, and their table.
    """
    everything = sorted({*token_ids, *lower_case_tokens()})
    row_of = {token: row for row, token in enumerate(everything)}
    trained = torch.tensor([row_of[token] for token in token_ids])
    seen = torch.from_numpy(counts[everything]).double()[:, None]
    values = torch.from_numpy(states(_words(everything))).double()
    values = (values - values[trained].mean(0)) / (values[trained].std(0) + 1e-6)
    values = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], 1)
    x, y, weight = values[trained], table[2:].double(), (seen / (seen + 10))[trained]
    penalty = RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    rows = values @ torch.linalg.solve(x.T @ (weight * x) + penalty, x.T @ (weight * y))
    own = (seen / (seen + OWN))[trained]
    rows[trained] = own * y + (1 - own) * rows[trained]
    return everything, torch.cat([table[:2], rows.float()])


def _words(token_ids: Sequence[int]) -> list[str]:
    return [gpt2_token_bytes()[i].decode(errors="replace").strip() for i in token_ids]
