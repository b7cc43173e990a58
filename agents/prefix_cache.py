"""A KV cache for loops that show a policy one observation after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.gpt2 import GPT2


class PrefixCache:
    """Remembers the texts that a batch of rows holds, so that only their new tokens are read.

    Every call compares the texts with the cached ones. An extended text costs its new tokens; a
    restarted or altered text is read again from where it differs. So every loop that shows the
    policy one observation after another gets KV-cached, continuously batched decoding without
    knowing it.

    Attributes:
        tokens_read, tokens_reused: how many tokens went through the model, and how many did not.
    """

    def __init__(self, gpt2: GPT2, batch_size: int, width: int) -> None:
        """Makes an empty cache for `batch_size` texts of at most `width` tokens."""
        self.gpt2, self.batch_size = gpt2, batch_size
        self.kv = gpt2.new_cache(batch_size, width)
        device = gpt2.wte.weight.device
        self._columns = torch.arange(width, device=device)
        self._ids = torch.zeros(batch_size, width, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.tokens_read = self.tokens_reused = 0
        # Each weight's module and name: `gpt2.parameters()` walks all modules, which takes longer
        # than a small model takes to decode a token.
        self._slots: list[tuple[Any, str]] = [
            (module._parameters, name) for module in gpt2.modules() for name in module._parameters
        ]
        self._weights: tuple[int, ...] = ()

    def forget_if_changed(self) -> None:
        """Empties the cache if a weight was written or replaced since the last call."""
        parameters = [module[name] for module, name in self._slots]
        weights = tuple(x for p in parameters for x in (p._version, p.data_ptr()))
        if weights != self._weights:
            self._weights = weights
            self._lengths.zero_()

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The last hidden state at the end of each text.

        Args:
            ids: the texts, (B, T) int64.
            lengths: how many tokens of each count, (B,), at least 1.

        Returns:
            (B, C).
        """
        T = min(ids.shape[1], self._ids.shape[1])
        columns = self._columns[:T]
        same = (ids[:, :T] == self._ids[:, :T]) & (columns < self._lengths[:, None])
        # The last token is always read, because its output is the result.
        start = torch.minimum(same.long().cumprod(1).sum(1), lengths - 1)
        # The only values read on the host: a GPU waits for each such read.
        host_lengths, host_start = torch.stack([lengths, start]).cpu()
        new = host_lengths - host_start
        hidden = None
        for group in (new == 1, new > 1):  # extended texts, and texts of which more is new
            if not bool(group.any()):
                continue
            size, longest = int(new[group].max()), int(host_lengths[group].max())
            if bool(group.all()):
                hidden = self._read_end(ids, lengths, size, longest)
                continue
            rows = group.nonzero()[:, 0].to(ids.device, non_blocking=True)
            out = self._read_end(ids[rows], lengths[rows], size, longest, rows)
            if hidden is None:
                hidden = out.new_empty(len(ids), out.shape[1])
            hidden[rows] = out
        assert hidden is not None, "no text to read"
        self._ids[:, :T] = ids[:, :T]
        self._lengths = lengths
        self.tokens_read += int(new.sum())
        self.tokens_reused += int(host_start.sum())
        return hidden

    def _read_end(
        self, ids: Tensor, lengths: Tensor, size: int, longest: int, rows: Tensor | None = None
    ) -> Tensor:
        """Reads the last `size` tokens of texts; shorter texts are read whole.

        Args:
            ids, lengths: as for `read`.
            size: how many tokens.
            longest: the largest of `lengths`.
            rows: the cache's rows that hold these texts; None: all.
        """
        first = (lengths - size).clamp(min=0)
        positions = first[:, None] + self._columns[:size]  # (b, size)
        hidden = self.gpt2.hidden(
            ids.gather(1, positions),
            positions,
            cache=self.kv,
            cache_rows=rows,
            cache_length=max(size, longest),
        )
        return hidden[torch.arange(len(ids), device=ids.device), lengths - 1 - first]
