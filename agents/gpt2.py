"""GPT-2 from scratch: attention, MLP, block, model.

The network of Radford et al. (2019), equal to Hugging Face's checkpoints number for number: pre-norm
blocks, learned positions, tanh GELU, an output head tied to the token embedding. The modules below
it know only sizes and tensors: `gpt2_config`, `kv_cache`, `packing`, `sampling` and `log_probs`; for
GPUs `compiled`, `fused_log_probs`, `decode_attention` and `cuda_graphs`. `pretrained` and `tokenizer`
read and write its files.

Letters in shapes: B rows, T positions, S new positions, C channels, H heads, D = C / H, V tokens.

>>> gpt2 = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=4))
>>> gpt2(torch.tensor([[1, 2, 3]])).shape
torch.Size([1, 3, 100])
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents.compiled import compiled_blocks
from agents.cuda_graphs import CUDAGraphs
from agents.fused_log_probs import fused_log_probs
from agents.gpt2_config import END_OF_TEXT_ID, GPT2Config
from agents.kv_cache import CacheView, KVCache
from agents.log_probs import aligned, autocast_dtype, log_probs, log_probs_and_kl
from agents.packing import Packing
from agents.pretrained import (
    convert_weights,
    find_files,
    read_config,
    read_weights,
    write_pretrained,
)
from agents.sampling import Decoding, at_least_float32, mask_after_end, sample
from agents.tokenizer import write_tokenizer

__all__ = ["END_OF_TEXT_ID", "GPT2", "GPT2Config", "KVCache", "sample"]


def _dropout(x: Tensor, p: float, training: bool) -> Tensor:
    # Even a call that does nothing would cost a few percent of a small model's token.
    return F.dropout(x, p) if training and p else x


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout_p: float
) -> Tensor:
    """Scaled dot-product attention of q (B, H, S, D) to k and v (B, H, L, D): (B, H, S, D).

    In single precision on a CPU, even under autocast: the backward of torch's CPU kernel takes five
    times as long in bf16.
    """
    if is_causal and q.shape[2] == 1 and not dropout_p:
        return v  # a token that sees only itself
    # The other CUDA kernels work on 128 queries at a time.
    if q.is_cuda and is_causal and q.shape[2] <= 64:
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    if q.is_cpu and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            q, k, v = map(at_least_float32, (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # queries, keys, values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(
        self,
        x: Tensor,
        cached: tuple[Tensor, Tensor] | None = None,
        view: CacheView | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """(B, S, C) to (B, S, C); `cached` holds this layer's keys and values, seen as `view` says.

        With `packing` (N, C) to (N, C), a row for each of its prefixes.
        """
        qkv = self.c_attn(x)
        if packing is not None:
            qkv = packing.pad(qkv)
        (B, S, _), C = qkv.shape, x.shape[-1]
        qkv = qkv.view(B, S, 3, self.n_head, C // self.n_head)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, S, D)
        mask, is_causal, fused = None, True, False
        if cached is not None and view is not None:
            k, v = view.update(cached[0], k), view.update(cached[1], v)  # (B, H, L, D)
            q, mask, is_causal, fused = q.to(k.dtype), view.mask, view.is_causal, view.fused
        if fused:
            from agents.decode_attention import decode_attention  # wants Triton

            y = decode_attention(q, k, v)
        else:
            y = _attend(q, k, v, mask, is_causal, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, S, C)
        y = self.c_proj(y if packing is None else packing.pack(y))
        return _dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """The position-wise network: widen, tanh GELU, narrow."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, inner)
        self.c_proj = nn.Linear(inner, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return _dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """One layer: attention and MLP, each reading a normalised residual stream and adding to it."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        cached: tuple[Tensor, Tensor] | None = None,
        view: CacheView | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """(B, S, C) to (B, S, C); arguments as for `Attention`."""
        x = x + self.attn(self.ln_1(x), cached, view, packing)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """GPT-2 with its language-modelling head.

    Parameters carry Hugging Face's names, but every projection is an `nn.Linear`, (out, in). The
    head is the token embedding itself. Under autocast logits are half precision: call `.float()` on
    them before a softmax. Token ids are int64 throughout.
    """

    def __init__(self, config: GPT2Config) -> None:
        """Makes a model with fresh weights, drawn as GPT-2's were from torch's global generator."""
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self._graphs, self._compiled = CUDAGraphs(), False
        # 2 * n_layer branches add to the residual stream. The scale keeps its variance constant.
        residual_std = 0.02 / math.sqrt(2 * config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:  # layer norms' weights stay 1
                std = residual_std if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=std)

    @property
    def token_ids(self) -> list[int] | None:
        """The GPT-2 token of each row, or None: row i is token i."""
        return None if self.config.token_ids is None else list(self.config.token_ids)

    @property
    def end_index(self) -> int | None:
        """The row of `<|endoftext|>`, or None if the model has no such token."""
        return self.config.eos_token_id

    def use_compiled_kernels(self) -> None:
        """Uses compiled kernels on a GPU from now on: `torch.compile`'s, and our Triton kernel for decoding.

        The first pass of each kind takes seconds. On a CPU nothing changes. Copies stay compiled.
        """
        self._compiled = True

    # -------------------------------------------------------------------------- the forward pass

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        cache_rows: Tensor | None = None,
        cache_length: int | None = None,
    ) -> Tensor:
        """Next-token logits (B, S, V) of ids (B, S) int64; arguments as for `hidden`."""
        return self.head(
            self.hidden(
                ids, positions, cache=cache, cache_rows=cache_rows, cache_length=cache_length
            )
        )

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (…, V) of `hidden` (…, C), or only those (…, K) of the vocabulary's `rows` (K,)."""
        weight = self.wte.weight if rows is None else self.wte.weight[rows]
        return F.linear(hidden, weight)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        cache_rows: Tensor | None = None,
        cache_length: int | None = None,
    ) -> Tensor:
        """The last hidden states, after `ln_f`: (B, S) int64 to (B, S, C), the head's input.

        Without `positions` each row of ids is a text from its start. Texts are padded on the right,
        where no token looks. With `positions` and a cache, ids continue the cached texts: each token
        is stored at its position and sees all that is stored at or before it. In a ragged chunk,
        padding may be written past a row's end: later tokens overwrite it before any token sees it.

        Args:
            ids: rows of the vocabulary, (B, S) int64.
            positions: position of each id, (B, S) int64, distinct within a row; None: 0 … S - 1.
                Without a cache they only choose the position embedding.
            cache: keys and values to write and to read; under `torch.no_grad`.
            cache_rows: the cache's row for each row of ids, (B,) int64, distinct; None: all.
            cache_length: how many cached positions to read, at least the largest position + 1;
                None: all. A tight bound saves time.

        Raises:
            TypeError: if `ids` is not int64.
            ValueError: for a text longer than `n_positions`, or a cache that does not fit.
        """
        self._check_ids(ids)
        B, S = ids.shape
        if cache is None:
            return self._blocks(ids, slice(0, S) if positions is None else positions)
        if torch.is_grad_enabled():
            raise ValueError("cache holds no gradients: use it under torch.no_grad()")
        cache.check_fits(ids, positions, cache_rows, cache_length)
        if positions is None and cache_rows is None:
            return self._blocks(ids, slice(0, S), cache, cache.prefill(S))
        if positions is None:
            positions, cache_length = torch.arange(S, device=ids.device).expand(B, S), S
        view = cache.at(positions, cache_length or cache.max_length, cache_rows)
        return self._blocks(ids, positions, cache, view)

    def packed_hidden(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`hidden` of padded texts from their start, each prefix that texts share only once.

        Args:
            ids: rows of the vocabulary, (B, S) int64.
            mask: the real tokens, bool (B, S); each row's come first.

        Returns:
            The last hidden states of the N distinct prefixes (N, C), and which of them ends at each
            place of the texts, (B, S) int64, 0 at the padding.
        """
        self._check_ids(ids)
        packing = Packing(ids, mask)
        return self._blocks(packing.tokens, packing.positions, packing=packing), packing.nodes

    def _blocks(
        self,
        ids: Tensor,
        positions: Tensor | slice,
        cache: KVCache | None = None,
        view: CacheView | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """`hidden`, unchecked; a slice of positions is the same for all rows."""
        shared = isinstance(positions, slice)
        x = self.wte(ids) + (self.wpe.weight[positions] if shared else self.wpe(positions))
        x = _dropout(x, self.config.dropout, self.training)  # (B, S, C)
        if packing is None and self._runs_compiled(ids):
            return compiled_blocks(self.h, self.ln_f, x, cache, view)
        layers = itertools.repeat(None) if cache is None else cache.layers
        for block, cached in zip(self.h, layers, strict=False):
            x = block(x, cached, view, packing)
        return self.ln_f(x)

    def _runs_compiled(self, x: Tensor) -> bool:
        return self._compiled and x.is_cuda

    def forward_passes(self) -> tuple[Callable[..., Any], ...]:
        """The methods that use the weights and may be called from outside, for FSDP."""
        return self.hidden, self.packed_hidden

    def log_probs(
        self, hidden: Tensor, tokens: Tensor, places: Tensor | None = None, entropies: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of tokens, and entropies of the distributions they were drawn from.

        Equal to a log-softmax of `head(hidden)`. Where the logits (M, V) are large, they are made a few
        rows at a time, and again for the gradient.

        Args:
            hidden: last hidden states, (M, C).
            tokens: (N,) int64.
            places: the row of `hidden` that predicts each token, (N,) int64; None: row i predicts token i.
            entropies: False leaves them 0, which saves time.

        Returns:
            Log-probabilities (N,) and entropies (M,), float32; float64 for a model of double precision.
        """
        if places is None and self._runs_compiled(hidden):
            return fused_log_probs(hidden, self.wte.weight, tokens)[:2]
        return log_probs(hidden, self.wte.weight, tokens, places, entropies)

    def log_probs_and_kl(
        self,
        hidden: Tensor,
        tokens: Tensor,
        start: GPT2,
        start_hidden: Tensor,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `log_probs`, with the exact KL of each next-token distribution to a start model's.

        Args:
            hidden, tokens, places: see `log_probs`.
            start: of the same vocabulary; it gets no gradients.
            start_hidden: its hidden states for the same prefixes, (M, its C).

        Returns:
            Log-probabilities (N,), entropies and KL (M,), and the start model's log-probabilities (N,).
        """
        weight, start_weight = self.wte.weight, start.wte.weight
        if places is None and self._runs_compiled(hidden):
            return fused_log_probs(hidden, weight, tokens, start_hidden, start_weight)
        return log_probs_and_kl(hidden, weight, start_hidden, start_weight, tokens, places)

    def new_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache on the model's device, in the dtype that attention is computed in."""
        device = self.wte.weight.device
        half = None if device.type == "cpu" else autocast_dtype(device.type)
        dtype = half or self.wte.weight.dtype
        return KVCache(self.config, batch_size, max_length, device, dtype)

    # -------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        greedy: bool = False,
        lengths: Tensor | None = None,
        end_index: int | None = None,
        generator: torch.Generator | None = None,
        cuda_graph: bool = False,
    ) -> Tensor:
        """Continues each row until it ends or has `max_new_tokens` more tokens.

        Args:
            ids: prompts, (B, T) int64, T >= 1, padded on the right with any valid ids if ragged.
            max_new_tokens: the most tokens to add.
            temperature: divides the logits.
            top_k: keeps the k largest logits (and their ties); None: all.
            greedy: takes the largest logit instead of sampling.
            lengths: length of each prompt, (B,) int64; None: T for all, which is a little faster.
            end_index: the row that ends a text; None: the model's own, if it has one; -1: none.
            generator: source of the one uniform number drawn per row and step.
            cuda_graph: captures the whole generation as a CUDA graph when it is asked for a second
                time, and replays it from then on: same sizes, settings and memory of the weights.

        Returns:
            The new tokens, (B, max_new_tokens) int64; `end_index` fills a row after its end.
            A row's tokens do not depend on when the others end.

        Raises:
            ValueError: for a text longer than `n_positions`, or an argument out of range.
        """
        end = self.end_index if end_index is None else end_index
        self._check_generate(ids, max_new_tokens, temperature, top_k, lengths, end)
        # One number for every row and step, used or not, keeps each row's draws its own.
        draws = max_new_tokens, len(ids)
        numbers: dict[str, Any] = {"dtype": torch.float64, "device": ids.device}
        u = None if greedy else torch.rand(draws, generator=generator, **numbers)
        settings = Decoding(max_new_tokens, temperature, top_k, end, self._runs_compiled(ids))
        if cuda_graph:
            return self._decode_by_graph(ids, lengths, u, settings)
        # On a GPU all rows decode to the end: a look at which are done would synchronise each token.
        decode = self._decode_dropping if ids.is_cpu else self._decode_static
        return decode(ids, lengths, u, settings)

    def _decode_dropping(
        self, ids: Tensor, lengths: Tensor | None, u: Tensor | None, settings: Decoding
    ) -> Tensor:
        """Decodes on a CPU: a row leaves the batch as its text ends, and equal texts are read once."""
        (B, T), end = ids.shape, settings.end
        new = torch.full((B, settings.max_new_tokens), -1 if end is None else end)
        # Rows with the same text share a row of the cache, a node of the tree of texts. For each
        # unfinished text: its row of `new`, and its node; sorted by node.
        rows, node, ids, lengths = _distinct_prompts(ids, lengths)
        cache = self.new_cache(B, T + settings.max_new_tokens - 1)
        cache.keep(torch.arange(len(ids)), 0)
        hidden = self._read_prompts(ids, lengths, cache)
        for step in range(settings.max_new_tokens):
            logits = self.head(hidden)
            if len(logits) < len(rows):  # otherwise each row has its own node, in order
                logits = logits.index_select(0, node)
            token = settings.next_token(logits, None if u is None else u[step, rows])
            new[rows, step] = token
            if end is not None and not bool((goes_on := token != end).all()):
                rows, node, token = rows[goes_on], node[goes_on], token[goes_on]
            if not len(rows) or step + 1 == settings.max_new_tokens:
                break
            V = self.config.vocab_size
            pairs, order = (node * V + token).sort()
            children, node = pairs.unique_consecutive(return_inverse=True)  # the next nodes
            rows, parents = rows[order], children // V
            if len(parents) != cache.batch_size or bool((parents.diff() == 0).any()):
                cache.keep(parents, T + step)
                lengths = None if lengths is None else lengths[parents]
            hidden = self._read_token(children % V, lengths, T, step, cache)
        return new

    def _decode_static(
        self, ids: Tensor, lengths: Tensor | None, u: Tensor | None, settings: Decoding
    ) -> Tensor:
        """Decodes every row to `max_new_tokens`: no shape changes, and no value is read on the host."""
        (B, T), V = ids.shape, self.config.vocab_size
        cache = self.new_cache(B, T + settings.max_new_tokens - 1)
        head = aligned(self.wte.weight.to(cache.dtype))
        hidden = self._read_prompts(ids, lengths, cache)
        tokens: list[Tensor] = []
        for step in range(settings.max_new_tokens):
            if step:
                hidden = self._read_token(tokens[-1], lengths, T, step - 1, cache)
            logits = F.linear(hidden, head)[:, :V]
            tokens.append(settings.next_token(logits, None if u is None else u[step]))
        new = torch.stack(tokens, 1)
        return new if settings.end is None else mask_after_end(new, settings.end, settings.end)

    def _decode_by_graph(
        self, ids: Tensor, lengths: Tensor | None, u: Tensor | None, settings: Decoding
    ) -> Tensor:
        """`_decode_static`, captured as a CUDA graph and replayed."""
        if ids.device.type != "cuda":
            raise ValueError(f"cuda_graph=True needs a CUDA device, and ids are on {ids.device}")

        def decode(ids: Tensor, *others: Tensor) -> Tensor:
            rest = iter(others)  # those of lengths and u that there are
            return self._decode_static(
                ids,
                None if lengths is None else next(rest),
                None if u is None else next(rest),
                settings,
            )

        weights = tuple(parameter.data_ptr() for parameter in self.parameters())
        kinds = ids.shape, lengths is None, u is None, autocast_dtype("cuda")
        key = (*kinds, settings, weights)
        return self._graphs.run(key, decode, ids, *(x for x in (lengths, u) if x is not None))

    def _read_prompts(self, ids: Tensor, lengths: Tensor | None, cache: KVCache) -> Tensor:
        """Fills the cache with prompts (B, T); returns the hidden state at the end of each, (B, C)."""
        B, T = ids.shape
        hidden = self._blocks(ids, slice(0, T), cache, cache.prefill(T))
        if lengths is None:
            return hidden[:, -1]
        return hidden[torch.arange(B, device=ids.device), lengths - 1]

    def _read_token(
        self, token: Tensor, lengths: Tensor | None, T: int, step: int, cache: KVCache
    ) -> Tensor:
        """Reads the token (B,) drawn at `step`, after prompts of `lengths` or of T; hidden (B, C)."""
        length = T + step + 1  # of the longest text
        if lengths is None:
            fused = self._runs_compiled(token) and not cache.head_size & (cache.head_size - 1)
            positions, view = slice(length - 1, length), cache.step(length, fused)
            return self._blocks(token[:, None], positions, cache, view)[:, 0]
        at = (lengths + step)[:, None]
        return self._blocks(token[:, None], at, cache, cache.at(at, length))[:, 0]

    # ----------------------------------------------------------------------- other vocabularies

    def restrict(self, token_ids: Iterable[int]) -> GPT2:
        """A new model of only these GPT-2 tokens: its softmax is this one's, given the subset.

        Raises:
            ValueError: for tokens this model does not hold.
        """
        wanted = [int(i) for i in token_ids]
        row_of = {t: row for row, t in enumerate(self.token_ids or range(self.config.vocab_size))}
        if missing := [i for i in wanted if i not in row_of]:
            raise ValueError(
                f"token_ids holds {missing[:8]}, which this model of {len(row_of)} tokens lacks:"
                " choose a vocabulary of its tokens, or another model"
            )
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        state["wte.weight"] = state["wte.weight"][[row_of[i] for i in wanted]]
        config = dataclasses.replace(
            self.config, vocab_size=len(wanted), token_ids=tuple(wanted), eos_token_id=None
        )
        return self._from_state(config, state).train(self.training)

    # ------------------------------------------------------------------------------------- files

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        dropout: float | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> GPT2:
        """Loads a GPT-2 in Hugging Face's format, in evaluation mode.

        Args:
            name_or_path: `"reviews"` (the model in this package), a directory, or a model of the
                Hugging Face hub: `"gpt2"`, `"gpt2-medium"`, `"distilgpt2"`, `"user/name"`…
            dtype: of the loaded parameters, whatever the file's.
            dropout: replaces the config's, which is 0 unless this package saved another.
            revision: the hub's branch, tag or commit.
            local_files_only: reads the hub's models from the local cache alone.
            allow_pickle: also reads `pytorch_model.bin` where there are no safetensors.

        Raises:
            FileNotFoundError: if the model, or its weights, cannot be found or downloaded.
            ValueError: if it is no GPT-2, or a file is damaged or does not fit the config.
        """
        name = os.fspath(name_or_path)
        find_file = find_files(name, revision, local_files_only)
        config = GPT2Config.from_dict(read_config(find_file, name))
        if dropout is not None:
            config = dataclasses.replace(config, dropout=dropout)
        weights = read_weights(find_file, name, config.n_layer, allow_pickle)
        with torch.device("meta"):
            expected = cls(config).state_dict()
        return cls._from_state(config, convert_weights(weights, expected, dtype)).eval()

    @classmethod
    def _from_state(cls, config: GPT2Config, state: Mapping[str, Tensor]) -> GPT2:
        with torch.device("meta"):  # no memory and no random numbers for weights to be replaced
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model

    def save_pretrained(
        self, directory: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Writes config.json and model.safetensors, for transformers or `from_pretrained`.

        A model of GPT-2's tokens gets its tokenizer too. A failing save leaves an earlier one.

        Args:
            directory: made if missing.
            dtype: of the written weights, such as `torch.float16`; None: as they are.
        """
        dtype = dtype or self.wte.weight.dtype
        write_pretrained(Path(directory), self.config.to_dict(), self.state_dict(), dtype)
        tokens = self.token_ids or range(self.config.vocab_size)
        write_tokenizer(Path(directory), tokens, self.config.n_positions)

    # -------------------------------------------------------------------------------- bad input

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dtype != torch.int64:
            raise TypeError(f"ids is of {ids.dtype}: token ids must be torch.int64")
        if ids.ndim != 2:
            raise ValueError(f"ids has shape {tuple(ids.shape)}: it must be (B, S), rows of tokens")
        if ids.shape[1] > self.config.n_positions:
            raise ValueError(
                f"ids holds {ids.shape[1]} positions, the model reads n_positions="
                f"{self.config.n_positions}: shorten the texts"
            )

    def _check_generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        lengths: Tensor | None,
        end: int | None,
    ) -> None:
        self._check_ids(ids)
        B, T = ids.shape
        n_positions, vocab_size = self.config.n_positions, self.config.vocab_size
        if B < 1:
            raise ValueError("ids holds no row: give at least one prompt")
        if T < 1 or max_new_tokens < 1 or T + max_new_tokens - 1 > n_positions:
            raise ValueError(
                f"ids of {T} positions and max_new_tokens={max_new_tokens} do not fit the model:"
                f" both are at least 1, and n_positions={n_positions} holds all tokens but the last"
            )
        # Values are checked on a CPU alone: on a GPU, a check would wait for all that is under way.
        if ids.is_cpu and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise ValueError(
                f"ids hold {int(ids.min())} to {int(ids.max())}: each must be a row of the vocabulary,"
                f" in [0, {vocab_size})"
            )
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0: pass greedy=True for 0")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1, or None for all tokens")
        if lengths is not None and (
            lengths.shape != (B,)
            or (lengths.is_cpu and not bool(((lengths >= 1) & (lengths <= T)).all()))
        ):
            raise ValueError(
                f"lengths holds {lengths.tolist()[:8]}: it must hold, for each of the {B} rows of"
                f" ids, how many of its {T} positions are the prompt, at least 1"
            )
        if end is not None and not -1 <= end < vocab_size:
            raise ValueError(
                f"end_index={end} must be a row, in [0, {vocab_size}), or -1 for texts without end"
            )


def _distinct_prompts(
    ids: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The different prompts of ids (B, T), by which the rows are sorted.

    Returns:
        The rows in the order of their prompts and which prompt each has, both (B,); the prompts and
        their lengths.
    """
    width = ids.new_full((len(ids),), ids.shape[1]) if lengths is None else lengths
    padding = torch.arange(ids.shape[1]) >= width[:, None]
    keyed = torch.cat([width[:, None], ids.masked_fill(padding, 0)], 1)
    prompts, which = keyed.unique(dim=0, return_inverse=True)
    which, rows = which.sort()
    return rows, which, prompts[:, 1:], None if lengths is None else prompts[:, 0]
