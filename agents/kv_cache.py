"""The keys and values of tokens already read, so that no token is read twice.

Letters in shapes: B rows, S new positions, L cached positions, H heads, D channels a head.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from agents.gpt2_config import GPT2Config


class KVCache:
    """Static buffers of keys and values, (B, H, L, D) a layer.

    A forward pass gets a view of the cache, which says where the pass writes and what it sees:
    `prefill` and `step` for rows of equal length, `at` for rows that stand at different lengths.
    A row is restarted by writing to it from position 0: nothing reads behind its current end.

    Attributes:
        layers: for each layer its keys and values.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes an empty cache for `batch_size` rows of `max_length` positions; None: all."""
        self.batch_size = batch_size
        self.max_length = max_length or config.n_positions
        self.head_size = config.n_embd // config.n_head
        shape = (batch_size, config.n_head, self.max_length, self.head_size)
        self.layers = [
            (
                torch.zeros(shape, device=device, dtype=dtype),
                torch.zeros(shape, device=device, dtype=dtype),
            )
            for _ in range(config.n_layer)
        ]
        self.dtype = dtype or torch.get_default_dtype()
        # The memory of all rows; `layers` shows the first.
        self._buffers = list(itertools.chain(*self.layers))

    def prefill(self, size: int) -> CacheView:
        """The first `size` tokens of all rows, each of which sees those before it."""
        return CacheView(slice(0, size), size, is_causal=True)

    def step(self, length: int, fused: bool = False) -> CacheView:
        """One token for every row, after which all rows hold `length` tokens."""
        return CacheView(slice(length - 1, length), length, fused=fused)

    def at(self, positions: Tensor, length: int, rows: Tensor | None = None) -> CacheView:
        """Tokens at `positions` (b, S), each of which sees what is stored at or before its own.

        Args:
            positions: of the new tokens, int64, distinct within a row.
            length: how many stored positions to read; above the largest position.
            rows: the cache's rows that are continued, (b,) int64, distinct; None: all.
        """
        stored = torch.arange(length, device=positions.device)
        mask = stored <= positions[:, None, :, None]  # (b, 1, S, L)
        where = torch.arange(self.batch_size, device=positions.device) if rows is None else rows
        return CacheView((where[:, None], positions), length, rows, mask)

    def check_fits(
        self, ids: Tensor, positions: Tensor | None, rows: Tensor | None, length: int | None
    ) -> None:
        """Checks what a pass over ids (b, S) asks of the cache; positions on a CPU alone.

        On a GPU a look at the positions would wait for all that is under way.

        Raises:
            ValueError: if there is another number of rows, or a position or length is too large.
        """
        held = self.batch_size if rows is None else len(rows)
        if held != len(ids):
            raise ValueError(
                f"ids holds {len(ids)} rows but the cache is read at {held}: pass cache_rows, the"
                " cache's row for each row of ids"
            )
        end = ids.shape[1] if positions is None else 1
        if positions is not None and positions.is_cpu:
            end = int(positions.max()) + 1
        if end > self.max_length:
            raise ValueError(
                f"positions reach {end - 1}, the cache holds max_length={self.max_length}: make a"
                " longer one"
            )
        if length is not None and not end <= length <= self.max_length:
            raise ValueError(
                f"cache_length={length} must lie between the largest position + 1 and the cache's"
                f" max_length={self.max_length}"
            )

    def keep(self, rows: Tensor, length: int) -> None:
        """Keeps only these rows, in this order, with their first `length` positions.

        Args:
            rows: of this cache, int64; one may be named several times. No more than it was made for.
            length: how many positions are stored.
        """
        self.batch_size = len(rows)
        for stored, buffer in zip(itertools.chain(*self.layers), self._buffers, strict=True):
            buffer[: len(rows), :, :length] = stored[:, :, :length].index_select(0, rows)
        kept = [buffer[: len(rows)] for buffer in self._buffers]  # in place: new memory is slow
        self.layers = list(zip(kept[::2], kept[1::2], strict=True))


class CacheView(NamedTuple):
    """Where one forward pass writes its keys and values, and which of the stored ones it sees."""

    write: slice | tuple[Tensor, Tensor]  # columns of all rows, or rows (b, 1) and columns (b, S)
    length: int  # stored positions to read
    rows: Tensor | None = None  # to read, (b,); None: all, without a copy
    mask: Tensor | None = None  # (b, 1, S, L) bool; None: all of them, or causal
    is_causal: bool = False
    fused: bool = False  # one token sees all of them, by `decode_attention`

    def update(self, stored: Tensor, new: Tensor) -> Tensor:
        """Writes `new` (b, H, S, D) into one buffer; returns what the pass sees, (b, H, L, D)."""
        if isinstance(self.write, slice):
            stored[:, :, self.write] = new
        else:
            rows, columns = self.write
            stored[rows, :, columns] = new.to(stored.dtype).transpose(1, 2)
        seen = stored[:, :, : self.length]
        return seen if self.rows is None else seen.index_select(0, self.rows)
