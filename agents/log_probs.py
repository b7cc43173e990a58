"""Log-probabilities and KL under a language-modelling head, without all logits at once.

The logits (M, V) are the largest tensor of a small model's training by far. The forward pass makes
them a few rows at a time. The backward pass reads the probabilities if they were few enough to keep
(`Chunks.kept`), and makes them again otherwise.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from agents.sampling import at_least_float32


class Chunks(NamedTuple):
    """How much of the logits exists at a time."""

    forward: int  # rows
    backward: int  # rows; each chunk also passes once over the weight's gradient
    kept: int  # the backward pass keeps probabilities of up to so many entries, or makes them again


# Few rows stay in a processor's cache; an accelerator wants large matrix products.
CPU = Chunks(forward=128, backward=384, kept=2**26)
ACCELERATOR = Chunks(forward=4096, backward=4096, kept=2**30)


def log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    places: Tensor | None = None,
    entropies: bool = True,
    chunks: Chunks | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, and entropies of the distributions they were drawn from.

    Equal to a log-softmax of `hidden @ weight.T`, computed in the autocast dtype if autocast is on
    and summed in float32.

    Args:
        hidden: last hidden states, (M, C).
        weight: the head, (V, C).
        tokens: (N,) int64.
        places: the row of `hidden` that predicts each token, (N,) int64; None: row i predicts token i.
        entropies: False leaves them 0, which saves time.
        chunks: how many rows of logits to make at a time; None: by the device.

    Returns:
        Log-probabilities (N,) and entropies (M,), float32; float64 for double precision.
    """
    if chunks is None:
        chunks = CPU if hidden.is_cpu else ACCELERATOR
    # An autograd function cannot ask whether gradients are enabled outside.
    grad = torch.is_grad_enabled()
    return _LogProbs.apply(hidden, weight, tokens, places, entropies, chunks, grad)


def log_probs_and_kl(
    hidden: Tensor,
    weight: Tensor,
    start_hidden: Tensor,
    start_weight: Tensor,
    tokens: Tensor,
    places: Tensor | None = None,
    chunks: Chunks | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `log_probs`, with the KL of each next-token distribution to that of a start model.

    KL(p, q) = Σ_a p(a) (log p(a) - log q(a)), summed over the vocabulary instead of sampled: the
    Rao-Blackwellised estimate, whose only noise is that of the texts (Amini et al. 2025, "Better
    Estimation of the KL Divergence Between Language Models").

    Args:
        hidden, weight, tokens, places, chunks: see `log_probs`.
        start_hidden, start_weight: the start model's, which get no gradients.

    Returns:
        Log-probabilities (N,), entropies and KL (M,), and the start model's log-probabilities (N,). The
        last have no gradients.
    """
    if chunks is None:
        chunks = CPU if hidden.is_cpu else ACCELERATOR
    grad = torch.is_grad_enabled()
    start = start_hidden.detach(), start_weight.detach()
    return _LogProbsAndKL.apply(hidden, weight, *start, tokens, places, chunks, grad)


class _LogProbsAndKL(torch.autograd.Function):
    """p = softmax(z), q = softmax(z of the start model), with gradients in closed form.

    d log p_token / dz = onehot(token) - p, and d KL / dz = p (log p - log q - KL).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        start_hidden: Tensor,
        start_weight: Tensor,
        tokens: Tensor,
        places: Tensor | None,
        chunks: Chunks,
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind, (M, V) = hidden.device.type, (len(hidden), len(weight))
        ctx.rows, ctx.decided = chunks.backward, _Decided(tokens, places)
        ctx.dtype = autocast_dtype(kind)
        h, h0 = hidden.to(ctx.dtype), start_hidden.to(ctx.dtype)
        w, w0 = aligned(weight.to(ctx.dtype)), aligned(start_weight.to(ctx.dtype))
        size = min(chunks.forward, M)
        buffers, start_buffers = _LogitBuffers(size, w, V), _LogitBuffers(size, w0, V)
        log_prob, start = hidden.new_empty(2, len(tokens), dtype=buffers.wide.dtype)
        entropy, kl = hidden.new_empty(2, M, dtype=buffers.wide.dtype)
        # Two matrices are kept for the gradient, p and log p - log q, where `log_probs` keeps one.
        keep = grad and chunks.kept >= 2 * M * V and any(ctx.needs_input_grad)
        kept = [buffers.wide.new_empty(M, V) for _ in range(2)] if keep else []
        for rows in slices(M, chunks.forward):
            log_p = buffers.log_softmax(h[rows], w)
            log_q = start_buffers.log_softmax(h0[rows], w0)
            which, entries = ctx.decided.by(rows, V)
            log_prob[which], start[which] = log_p.take(entries), log_q.take(entries)
            p = torch.exp(log_p, out=kept[0][rows] if keep else buffers.wide[: len(log_p)])
            out = kept[1][rows] if keep else start_buffers.wide[: len(log_p)]
            ratio = torch.sub(log_p, log_q, out=out)
            entropy[rows] = -log_p.mul_(p).sum(-1)
            kl[rows] = torch.mul(p, ratio, out=log_q).sum(-1)
        tensors = hidden, weight, start_hidden, start_weight, entropy, kl
        ctx.save_for_backward(*tensors, *kept)
        ctx.mark_non_differentiable(start)
        ctx.set_materialize_grads(False)
        return log_prob, entropy, kl, start

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None, *others: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, start_hidden, start_weight, entropy, kl, *kept = ctx.saved_tensors
        if grad_log_prob is None:
            grad_log_prob = kl.new_zeros(len(ctx.decided.tokens))
        grad_kl = torch.zeros_like(kl) if others[0] is None else others[0]
        h, h0 = hidden.to(ctx.dtype), start_hidden.to(ctx.dtype)
        w, w0 = aligned(weight.to(ctx.dtype)), aligned(start_weight.to(ctx.dtype))
        size, V = min(ctx.rows, len(h)), len(weight)
        buffers, start_buffers = _LogitBuffers(size, w, V), _LogitBuffers(size, w0, V)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in slices(len(h), ctx.rows):
            if kept:
                p, ratio = kept[0][rows], kept[1][rows]
            else:
                log_p = buffers.log_softmax(h[rows], w)
                ratio = start_buffers.log_softmax(h0[rows], w0).neg_().add_(log_p)
                p = log_p.exp_()
            # p · (grad_kl · (log p - log q - KL) - grad_log_prob), and grad_log_prob at the token.
            which, entries = ctx.decided.by(rows, V)
            slope = grad_kl[rows, None] * kl[rows, None]
            slope = slope.index_add(0, entries // V, grad_log_prob[which, None])
            grad_z = torch.mul(ratio, grad_kl[rows, None], out=buffers.wide[: len(p)])
            if grad_entropy is not None:
                slope += grad_entropy[rows, None] * entropy[rows, None]
            grad_z.sub_(slope).mul_(p)
            if grad_entropy is not None:
                grad_z -= grad_entropy[rows, None] * torch.xlogy(p, p)
            grad_z.view(-1).scatter_add_(0, entries, grad_log_prob[which])
            grad_z = buffers.narrow(grad_z)
            grad_hidden[rows] = grad_z @ w
            grad_weight += (grad_z.t() @ h[rows])[:V]
        return grad_hidden, grad_weight, None, None, None, None, None, None


class _LogProbs(torch.autograd.Function):
    """p = softmax(z), z = hidden · weightᵀ, with gradients in closed form.

    d log p_token / dz = onehot(token) - p, and d entropy / dz = -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        places: Tensor | None,
        entropies: bool,
        chunks: Chunks,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        kind, (M, V) = hidden.device.type, (len(hidden), len(weight))
        ctx.rows, ctx.decided = chunks.backward, _Decided(tokens, places)
        ctx.dtype = autocast_dtype(kind)
        h, w = hidden.to(ctx.dtype), aligned(weight.to(ctx.dtype))
        buffers = _LogitBuffers(min(chunks.forward, M), w, V)
        log_prob = hidden.new_empty(len(tokens), dtype=buffers.wide.dtype)
        entropy = log_prob.new_zeros(M)
        keep = grad and chunks.kept >= M * V and any(ctx.needs_input_grad)
        kept = [buffers.wide.new_empty(M, V)] if keep else []
        for rows in slices(M, chunks.forward):
            log_p = buffers.log_softmax(h[rows], w)
            which, entries = ctx.decided.by(rows, V)
            log_prob[which] = log_p.take(entries)
            if keep or entropies:
                p = torch.exp(log_p, out=kept[0][rows] if keep else buffers.wide[: len(log_p)])
            if entropies:
                entropy[rows] = -log_p.mul_(p).sum(-1)
        ctx.save_for_backward(hidden, weight, entropy, *kept)
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, entropy, *kept = ctx.saved_tensors
        if grad_log_prob is None:
            grad_log_prob = entropy.new_zeros(len(ctx.decided.tokens))
        h, w, V = hidden.to(ctx.dtype), aligned(weight.to(ctx.dtype)), len(weight)
        buffers = _LogitBuffers(min(ctx.rows, len(h)), w, V)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        product = torch.empty_like(w) if w.dtype != grad_weight.dtype else None
        for rows in slices(len(h), ctx.rows):
            p = kept[0][rows] if kept else buffers.log_softmax(h[rows], w).exp_()
            which, entries = ctx.decided.by(rows, V)
            slope = torch.zeros_like(entropy[rows, None])
            slope.index_add_(0, entries // V, -grad_log_prob[which, None])
            if grad_entropy is not None:
                slope -= grad_entropy[rows, None] * entropy[rows, None]
            grad_z = torch.mul(p, slope, out=buffers.wide[: len(p)])
            if grad_entropy is not None:
                grad_z -= grad_entropy[rows, None] * torch.xlogy(p, p)
            grad_z.view(-1).scatter_add_(0, entries, grad_log_prob[which])
            grad_z = buffers.narrow(grad_z)
            grad_hidden[rows] = grad_z @ w
            if product is None:
                grad_weight.addmm_(grad_z.t(), h[rows])
            else:
                torch.mm(grad_z.t(), h[rows], out=product)
                # In slices, because a sum of two dtypes first widens a copy of the second.
                for part in slices(V, 4096):
                    grad_weight[part] += product[:V][part]
        return grad_hidden, grad_weight, None, None, None, None, None


class _Decided:
    """The token that each row of the logits predicts, or the several places that share the row."""

    def __init__(self, tokens: Tensor, places: Tensor | None) -> None:
        self.tokens, self.places = tokens, places

    def by(self, rows: slice, V: int) -> tuple[slice | Tensor, Tensor]:
        """The tokens that some rows predict, and their flat indices in those rows' logits."""
        if self.places is None:
            tokens = self.tokens[rows]
            return rows, torch.arange(len(tokens), device=tokens.device) * V + tokens
        which = ((self.places >= rows.start) & (self.places < rows.stop)).nonzero()[:, 0]
        return which, (self.places[which] - rows.start) * V + self.tokens[which]


def slices(n: int, size: int) -> list[slice]:
    """0 … n, `size` at a time."""
    return [slice(first, first + size) for first in range(0, n, max(size, 1))]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes in on this kind of device; None: autocast is off."""
    enabled = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def aligned(weight: Tensor) -> Tensor:
    """A head (V, C) with rows of zeros up to a multiple of 64, in half precision on a GPU.

    cuBLAS multiplies by GPT-2's 50,257 rows at a sixth of its speed: at 97 TFLOP/s instead of 626, on
    an H100 in bf16.
    """
    if weight.is_cpu or weight.dtype.itemsize > 2:
        return weight
    return F.pad(weight, (0, 0, 0, -len(weight) % 64))


class _LogitBuffers:
    """Reusable logit buffers: allocating them for each chunk costs more than the matrix product.

    Attributes:
        logits: in the dtype of the weight, (rows, V) and the columns of its padding, which are 0.
        wide: (rows, V) in at least float32: `logits` itself, or a copy.
    """

    def __init__(self, rows: int, weight: Tensor, V: int) -> None:
        self.logits = weight.new_empty(rows, len(weight))
        self.logits[:, V:] = 0
        wide = at_least_float32(weight[:0]).dtype
        same = wide == weight.dtype
        self.wide = self.logits if same else self.logits.new_empty(rows, V, dtype=wide)

    @cached_property
    def _log_p(self) -> Tensor:
        return torch.empty_like(self.wide)

    def log_softmax(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Log-probabilities (n, V) of hidden (n, C), in a buffer of their own: `wide` is free."""
        n = len(hidden)
        torch.mm(hidden, weight.t(), out=self.logits[:n])
        if self.wide is not self.logits:
            self.wide[:n] = self.logits[:n, : self.wide.shape[1]]
        return torch.log_softmax(self.wide[:n], -1, out=self._log_p[:n])

    def narrow(self, wide: Tensor) -> Tensor:
        """`wide` (n, V) in the dtype of the weight, with its padding."""
        if wide.dtype == self.logits.dtype:
            return wide
        logits = self.logits[: len(wide)]
        logits[:, : wide.shape[1]] = wide
        return logits
