"""Texts without their padding, and with each shared prefix once.

A causal model gives a token the same state in every text that begins alike up to it. So the layers
compute each distinct prefix once: the nodes of the texts' prefix tree.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Packing:
    """The N distinct prefixes of B texts of up to S tokens, of which R <= B are distinct.

    Norms and projections run on the prefixes, (N, C). Attention runs on the distinct texts, padded to
    (R, S, C): it is cheap for short texts, and the causal mask hides padding on the right.

    Attributes:
        tokens: the last token of each prefix, (N,) int64.
        positions: where it stands, (N,) int64.
        nodes: the prefix that ends at each place of the texts, (B, S) int64; 0 at the padding.
    """

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        """Finds the prefixes of texts.

        Args:
            ids: rows of the vocabulary, (B, S) int64.
            mask: the real tokens, bool (B, S); each row's come first.
        """
        # In sorted order, no earlier row has a longer prefix in common with a row than the row above.
        rows, row_of_text = torch.unique(ids.masked_fill(~mask, -1), dim=0, return_inverse=True)
        real = rows >= 0
        new = real.clone()  # (R, S)
        new[1:] &= (rows[1:] != rows[:-1]).cumsum(1) > 0
        number = new.flatten().cumsum(0).view_as(new) - 1
        # A place that is not new repeats the nearest new one above it: a running maximum finds it.
        nodes = number.masked_fill(~new, 0).cummax(0).values.masked_fill(~real, 0)
        self._nodes = nodes.flatten()
        self._places = new.flatten().nonzero()[:, 0]  # (N,)
        self.shape = new.shape
        self.tokens = rows.flatten()[self._places]
        self.positions = self._places % new.shape[1]
        self.nodes = nodes[row_of_text]

    def pack(self, x: Tensor) -> Tensor:
        """(R, S, …) to (N, …)."""
        return x.flatten(0, 1).index_select(0, self._places)

    def pad(self, x: Tensor) -> Tensor:
        """(N, …) to (R, S, …), finite numbers at the padding."""
        return x.index_select(0, self._nodes).unflatten(0, self.shape)
