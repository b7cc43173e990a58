"""Capture functions as CUDA graphs and replay them: small kernels cost more to launch than to run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class CUDAGraphs:
    """The last few functions called, as CUDA graphs.

    A function must not read tensor values on the host, and its shapes must not change.
    """

    def __init__(self, max_graphs: int = 4) -> None:
        self.max_graphs = max_graphs
        self._calls: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor] | None] = {}

    def run(self, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`, which `key` identifies: same key, same function and input shapes.

        The first call runs eagerly and so warms up, the second captures, later ones replay.
        """
        if key not in self._calls:
            if len(self._calls) == self.max_graphs:
                self._calls.pop(next(iter(self._calls)))
            self._calls[key] = None
            return function(*inputs)
        call = self._calls[key]
        if call is None:
            static_inputs, graph = tuple(x.clone() for x in inputs), torch.cuda.CUDAGraph()
            # Autocast caches bf16 weights. Clear it so that the graph captures its own casts, and
            # none of them leak out.
            torch.clear_autocast_cache()
            with torch.cuda.graph(graph):
                output = function(*static_inputs)
            torch.clear_autocast_cache()
            call = self._calls[key] = graph, static_inputs, output
        graph, static_inputs, output = call
        for static, given in zip(static_inputs, inputs, strict=True):
            static.copy_(given)
        graph.replay()
        return output.clone()

    def __deepcopy__(self, memo: Any) -> CUDAGraphs:
        return CUDAGraphs(self.max_graphs)  # a copied model has weights of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return CUDAGraphs, (self.max_graphs,)
