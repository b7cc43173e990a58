"""Texts of different lengths without their padding, so that no layer computes what nobody reads."""

from __future__ import annotations

from torch import Tensor


class Packing:
    """The N real tokens of texts (B, S), one row after the other.

    Norms and projections run on (N, C). Attention, cheap beside them in short texts, runs on the
    padded (B, S, C), whose padding no real token sees.
    """

    def __init__(self, mask: Tensor) -> None:
        """Packs the tokens of `mask`, bool (B, S), of which each row's come first."""
        self.shape = mask.shape
        self._places = mask.flatten().nonzero()[:, 0]  # (N,)

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, …) to (N, …)."""
        return x.flatten(0, 1).index_select(0, self._places)

    def pad(self, x: Tensor) -> Tensor:
        """(N, …) to (B, S, …), 0 at the padding."""
        padded = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
        return padded.index_copy(0, self._places, x).unflatten(0, self.shape)
