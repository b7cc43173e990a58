"""Log-probabilities and KL under a head, by compiled kernels: a GPU reads each logit once or twice.

The values are those of `log_probs`, which passes many times over few rows: that suits a CPU's cache.
On a GPU such passes over the logits (M, V) take longer than the matrix products. `torch.compile`
fuses them, into one kernel in the forward pass and one in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agents.compiled import compiled
from agents.log_probs import ACCELERATOR, Chunks, aligned, autocast_dtype, slices
from agents.sampling import at_least_float32


def fused_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    start_hidden: Tensor | None = None,
    start_weight: Tensor | None = None,
    chunks: Chunks = ACCELERATOR,
    compile: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`log_probs_and_kl` of a token for each row; without a start model the last two are 0.

    Args:
        hidden: last hidden states, (M, C).
        weight: the head, (V, C).
        tokens: (M,) int64.
        start_hidden, start_weight: the start model's, which get no gradients.
        chunks: how many rows of logits to make at a time, where not all are kept for the backward pass.
        compile: False computes the same without fusing, for tests.

    Returns:
        Log-probabilities, entropies, KL and the start model's log-probabilities, each (M,), float32 or
        float64. The last have no gradients.
    """
    grad = torch.is_grad_enabled()
    start = [None if x is None else x.detach() for x in (start_hidden, start_weight)]
    return _FusedLogProbs.apply(hidden, weight, *start, tokens, chunks, compile, grad)


class _FusedLogProbs(torch.autograd.Function):
    """p = softmax(z) and q = softmax(z of the start model), with gradients in closed form."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        start_hidden: Tensor | None,
        start_weight: Tensor | None,
        tokens: Tensor,
        chunks: Chunks,
        compile: bool,
        grad: bool,
    ) -> tuple[Tensor, ...]:
        kind, (M, V) = hidden.device.type, (len(hidden), len(weight))
        ctx.dtype = autocast_dtype(kind)
        ctx.compile, ctx.tokens, ctx.size = compile, tokens, chunks.backward
        keep = grad and chunks.kept >= M * V and any(ctx.needs_input_grad)
        statistics = compiled(_statistics) if compile else _statistics
        head, start = _Logits(hidden, weight, ctx.dtype), None
        if start_hidden is not None and start_weight is not None:
            start = _Logits(start_hidden, start_weight, ctx.dtype)
        found, ctx.kept = [], None
        for rows in slices(M, M if keep else chunks.forward) or [slice(0, 0)]:
            logits, start_logits = head.of(rows), None if start is None else start.of(rows)
            found.append(statistics(logits, start_logits, tokens[rows], V))
            if keep:
                ctx.kept = logits, start_logits
        log_prob, entropy, kl, start_log_prob, *sums = map(torch.cat, zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, start_hidden, start_weight, entropy, kl, *sums)
        ctx.mark_non_differentiable(start_log_prob)
        ctx.set_materialize_grads(False)
        return log_prob, entropy, kl, start_log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, start_hidden, start_weight, entropy, kl, *sums = ctx.saved_tensors
        outer = [torch.zeros_like(kl) if grad is None else grad for grad in grads[:3]]
        gradient = compiled(_gradient) if ctx.compile else _gradient
        (M, V), kept, ctx.kept = (len(hidden), len(weight)), ctx.kept, None  # overwritten below
        head = _Logits(hidden, weight, ctx.dtype)
        start = None if start_hidden is None else _Logits(start_hidden, start_weight, ctx.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in slices(M, M if kept else ctx.size):
            logits, start_logits = kept or (
                head.of(rows),
                None if start is None else start.of(rows),
            )
            values = [x[rows] for x in (ctx.tokens, entropy, kl, *sums, *outer)]
            gradient(logits, start_logits, V, *values)
            grad_hidden[rows] = logits @ head.weight
            grad_weight += (logits.t() @ head.hidden[rows])[:V]
        return grad_hidden, grad_weight, *[None] * 6


class _Logits:
    """Logits of some rows at a time, (n, V) and columns of zeros up to a multiple of 64."""

    def __init__(self, hidden: Tensor, weight: Tensor, dtype: torch.dtype | None) -> None:
        self.hidden, self.weight = hidden.to(dtype), aligned(weight.to(dtype))

    def of(self, rows: slice) -> Tensor:
        return self.hidden[rows] @ self.weight.t()


def _statistics(
    logits: Tensor, start_logits: Tensor | None, tokens: Tensor, V: int
) -> tuple[Tensor, ...]:
    """Log-probability, entropy, KL, start log-probability, and both logarithms of the sums, (n,)."""
    z = at_least_float32(logits[:, :V])
    top = z.amax(-1, keepdim=True)
    e = (z - top).exp()
    total = e.sum(-1)
    lse = top[:, 0] + total.log()
    log_prob = z.gather(1, tokens[:, None])[:, 0] - lse
    entropy = lse - (e * z).sum(-1) / total
    if start_logits is None:
        zero = torch.zeros_like(lse)
        return log_prob, entropy, zero, zero, lse, zero
    start_z = at_least_float32(start_logits[:, :V])
    start_lse = start_z.logsumexp(-1)
    kl = (e * (z - start_z)).sum(-1) / total - lse + start_lse
    start_log_prob = start_z.gather(1, tokens[:, None])[:, 0] - start_lse
    return log_prob, entropy, kl, start_log_prob, lse, start_lse


def _gradient(
    logits: Tensor,
    start_logits: Tensor | None,
    V: int,
    tokens: Tensor,
    entropy: Tensor,
    kl: Tensor,
    lse: Tensor,
    start_lse: Tensor,
    grad_log_prob: Tensor,
    grad_entropy: Tensor,
    grad_kl: Tensor,
) -> None:
    """Replaces the logits (n, V and padding) by the gradient with respect to them.

    d log p_token / dz = onehot(token) - p, d entropy / dz = -p (log p + entropy) and
    d KL / dz = p (log p - log q - KL).
    """
    log_p = at_least_float32(logits) - lse[:, None]
    slope = grad_log_prob[:, None] + grad_entropy[:, None] * (log_p + entropy[:, None])
    if start_logits is not None:
        log_q = at_least_float32(start_logits) - start_lse[:, None]
        slope = slope - grad_kl[:, None] * (log_p - log_q - kl[:, None])
    column = torch.arange(logits.shape[1], device=logits.device)
    hit = torch.where(column == tokens[:, None], grad_log_prob[:, None], 0.0)
    logits.copy_(torch.where(column < V, hit - log_p.exp() * slope, 0.0))
