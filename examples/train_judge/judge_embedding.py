"""The judge's embedding in training: each token's meaning by the teacher, and what its own row adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text_sentiment_env.judge import Tokenizer
from text_sentiment_env.vocabulary import GPT2_VOCABULARY_SIZE, gpt2_token_bytes

States = Callable[[Sequence[str]], npt.NDArray[np.float32]]

AXES = 256  # of the teacher's states
OWN = 40  # chosen on SST-2's dev set among 20, 40 and 80, when the map was still fitted after training


def count_tokens(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """How often each GPT-2 token occurs in the lower-cased texts, (50257,)."""
    everything, counts = Tokenizer(range(GPT2_VOCABULARY_SIZE)), np.zeros(GPT2_VOCABULARY_SIZE, int)
    for text in texts:
        np.add.at(counts, everything([text])[0] - 2, 1)
    return counts


def lower_case_tokens() -> list[int]:
    """The GPT-2 tokens that words of lower-cased English are made of."""
    words = [token.decode(errors="replace") for token in gpt2_token_bytes()]
    return [
        i for i, w in enumerate(words) if w.isascii() and w == w.lower() and w.strip().isalpha()
    ]


def choose_tokens(counts: npt.NDArray[np.int64]) -> list[int]:
    """The tokens that get a row, in order of their id.

    They are those that texts hold five times or more, and all lower-case ones.
    """
    return sorted({*np.flatnonzero(counts >= 5).tolist(), *lower_case_tokens()})


class TokenEmbedding(nn.Module):
    """The row of a token seen n times is a linear map of the teacher's state + own · n / (n + `OWN`).

    A token that training hardly saw is thus embedded by its meaning, and one that it saw often as
    suits the task. With rows that are free from the start the network learns those of rare tokens
    by heart. Rows 0 and 1 (padding, unknown) have no meaning, only a row of their own.
    """

    states: Tensor
    share: Tensor

    def __init__(self, states: Tensor, counts: npt.NDArray[np.int64], width: int) -> None:
        """Begins with the states on their `width` main axes.

        Args:
            states: the teacher's state for each token, (tokens, S).
            counts: how often training sees each token, (tokens,).
            width: width of the embedding.
        """
        super().__init__()
        axes, size, _ = torch.linalg.svd(states - states.mean(0), full_matrices=False)
        axes, size = axes[:, :AXES], size[:AXES]
        # All axes weigh the same, so that AdamW reaches the small ones too. A token's values have
        # norm 4: a step of AdamW then moves a row through the map more than through `own`.
        axes = axes * (4 * (len(states) / axes.shape[1]) ** 0.5)
        seen = torch.from_numpy(np.concatenate([[np.inf] * 2, counts])).float()
        # No part of the weights: they follow from the data, and a checkpoint need not hold them.
        self.register_buffer("states", F.pad(axes, (0, 0, 2, 0)), persistent=False)
        self.register_buffer("share", 1 / (1 + OWN / seen)[:, None], persistent=False)
        self.map = nn.Linear(axes.shape[1], width, bias=False)
        self.own = nn.Embedding(len(states) + 2, width, padding_idx=0)
        with torch.no_grad():
            self.own.weight.zero_()
            main = torch.eye(width, axes.shape[1]) * size
            self.map.weight.copy_(main * (0.3 / (axes @ main.T).std()))

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of `ids`, (*ids.shape, width)."""
        unique, place = ids.unique(return_inverse=True)
        rows = self.map(self.states[unique]) + self.own(unique) * self.share[unique]
        return F.embedding(place, rows)

    @torch.no_grad()
    def table(self) -> Tensor:
        """All rows, (tokens + 2, width)."""
        return self.map(self.states) + self.own.weight * self.share


def token_states(states: States, token_ids: Sequence[int]) -> Tensor:
    """The teacher's state for each token, (tokens, S)."""
    words = [gpt2_token_bytes()[i].decode(errors="replace").strip() for i in token_ids]
    return torch.from_numpy(states(words))
