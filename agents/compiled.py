"""Functions and layers through `torch.compile`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from agents.kv_cache import CacheView, KVCache

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def compiled(function: F) -> F:
    """The function, its kernels fused; all callers share it.

    Its first call for each kind of input takes seconds.
    """
    return torch.compile(function)  # type: ignore[return-value]


def compiled_blocks(
    blocks: nn.ModuleList,
    last_norm: nn.Module,
    x: Tensor,
    cache: KVCache | None,
    view: CacheView | None,
) -> Tensor:
    """GPT-2's blocks and its last norm, (B, S, C) to (B, S, C).

    Without a cache each block is compiled whole. With one, its attention runs uncompiled, because the
    cache's length changes with every token.
    """
    if cache is None:
        for block in blocks:
            x = compiled(_run)(block, x)
        return last_norm(x)
    norms: list[Any] = [*(block.ln_1 for block in blocks), last_norm]
    normed = norms[0](x)
    for block, cached, norm in zip(blocks, cache.layers, norms[1:], strict=True):
        attention: Any = block.attn
        x, normed = compiled(_finish)(block, x, attention(normed, cached, view), norm)
    return normed


def _run(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def _finish(block: Any, x: Tensor, y: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """A block behind its attention, and the norm that reads its output."""
    x = x + y
    x = x + block.mlp(block.ln_2(x))
    return x, norm(x)
