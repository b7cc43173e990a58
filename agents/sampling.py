"""Drawing tokens from logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from agents.compiled import compiled


class NonFiniteError(FloatingPointError, ValueError):
    """NaN or infinity where a finite number is needed; training ends without it being saved."""


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32; double precision stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def apply_temperature_and_top_k(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Logits (…, V) of the distribution that temperature and top-k sampling draw from.

    Ties of the k-th largest logit are kept, as transformers does.
    """
    if temperature < 1e-6:  # as good as greedy: quotients would overflow, their differences may
        logits = logits - logits.amax(-1, keepdim=True)
        temperature = max(temperature, torch.finfo(logits.dtype).tiny)
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    return logits


def sample(
    logits: Tensor, generator: torch.Generator | None = None, *, u: Tensor | None = None
) -> Tensor:
    """Draws from softmax(logits) by inverting the cumulative sum at one uniform number a row.

    `torch.multinomial` draws a number for every entry of the vocabulary, at many times the cost.
    The cumulative sum is searched in two levels: blocks of about sqrt(V) entries, then the entries
    of one block. So no cumulative sum runs over all of V, and none loses precision on the way.
    Entries of probability zero are never drawn.

    Args:
        logits: (…, V); float16 and bfloat16 are raised to float32.
        generator: source of the uniform numbers; None: torch's global one.
        u: the uniform numbers themselves, in [0, 1), (…) float64.

    Returns:
        Indices, (…) int64.

    Raises:
        NonFiniteError: for NaN, infinity, or a row of only -inf. On a GPU this is not checked, because
            reading a value would wait for all that is under way.
    """
    p = at_least_float32(logits).softmax(-1).reshape(-1, logits.shape[-1])  # (B, V)
    if u is None:
        u = torch.rand(logits.shape[:-1], dtype=torch.float64, device=p.device, generator=generator)
    V = p.shape[-1]
    size = math.isqrt(V - 1) + 1
    whole = V - V % size
    blocks = p[:, :whole].unflatten(1, (-1, size)).sum(-1)
    if whole < V:
        blocks = torch.cat([blocks, p[:, whole:].sum(-1, keepdim=True)], 1)
    cumulative = blocks.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if p.is_cpu and not math.isfinite(total.sum().item()):
        raise NonFiniteError(
            "logits holds NaN, infinity or a row of only -inf: nothing can be drawn. Lower"
            " learning_rate, and go on from an earlier checkpoint"
        )
    block, rest = _first_above(blocks, cumulative, u.reshape(-1, 1) * total)
    columns = block * size + torch.arange(size, device=p.device)  # (B, size)
    if whole < V:
        inside = p.gather(1, columns.clamp(max=V - 1)) * (columns < V)
    else:
        inside = p.gather(1, columns)
    index, _ = _first_above(inside, inside.cumsum(-1, dtype=torch.float64), rest)
    return (block * size + index).view(logits.shape[:-1])


def _first_above(weights: Tensor, cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry of (B, N) whose cumulative sum exceeds target (B, 1), and the remainder.

    The entry's weight is positive, because the sum has grown there.
    """
    # Rounding may leave the target at or behind the end: the last positive entry is then meant.
    end = torch.nextafter(cumulative[:, -1:], target.new_zeros(()))
    target = torch.minimum(target, end).contiguous()
    index = torch.searchsorted(cumulative, target, right=True)
    index = index.clamp(max=weights.shape[1] - 1)  # NaN on a GPU would lead behind the last
    before = cumulative.gather(1, index) - weights.gather(1, index)
    return index, (target - before).clamp(min=0)  # rounding may lead in front of the entry


def mask_after_end(tokens: Tensor, end_index: int, fill: int) -> Tensor:
    """Tokens (B, T) with `fill` behind each row's first `end_index`."""
    is_end = tokens == end_index
    return tokens.masked_fill(is_end.cumsum(1) > is_end.long(), fill)


class Decoding(NamedTuple):
    """How `GPT2.generate` continues a text."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    end: int | None
    compiled: bool

    def next_token(self, logits: Tensor, u: Tensor | None) -> Tensor:
        """Tokens (B,) from logits (B, V) with one uniform number each, or the likeliest without."""
        draw = compiled(_draw) if self.compiled else _draw
        return draw(logits, u, self.temperature, self.top_k)


def _draw(logits: Tensor, u: Tensor | None, temperature: float, top_k: int | None) -> Tensor:
    logits = at_least_float32(logits)
    if u is None:
        return logits.argmax(-1)
    return sample(apply_temperature_and_top_k(logits, temperature, top_k), u=u)
