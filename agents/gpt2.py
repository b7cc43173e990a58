"""GPT-2 from scratch, in one file: configuration, attention, block, cache, model, sampling, files.

The network is that of Radford et al. (2019), in the numbers of Hugging Face's checkpoints: pre-norm
blocks, learned positions, tanh GELU, an output head tied to the token embedding. Letters in shapes:
B rows, T positions, S new positions, L cached positions, C channels, H heads, D = C / H, V tokens.

>>> gpt2 = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=4))
>>> gpt2(torch.tensor([[1, 2, 3]])).shape
torch.Size([1, 3, 100])
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

END_OF_TEXT_ID = 50256  # GPT-2's <|endoftext|>


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, under Hugging Face's names; the defaults are the 124M model's.

    Raises:
        ValueError: for sizes that make no GPT-2.
    """

    vocab_size: int = 50257
    n_positions: int = 1024  # the longest text the model can read
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # the MLP's width; None: 4 * n_embd
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.0  # of embeddings, attention and residuals, in training mode only
    # A model of fewer tokens than GPT-2's: row i of wte is GPT-2 token token_ids[i]. None: token i.
    token_ids: tuple[int, ...] | None = None
    # The row of <|endoftext|>. None: found from token_ids; stays None where there is no such row.
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}: change one"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        eos = self.eos_token_id
        if self.token_ids is not None:
            ids = tuple(int(i) for i in self.token_ids)
            if len(ids) != self.vocab_size or len(set(ids)) != len(ids):
                raise ValueError(
                    f"token_ids holds {len(ids)} ids, {len(set(ids))} of them distinct: it must"
                    f" name each of the vocab_size={self.vocab_size} rows once"
                )
            eos = ids.index(END_OF_TEXT_ID) if END_OF_TEXT_ID in ids else None
            object.__setattr__(self, "token_ids", ids)  # the dataclass is frozen
        elif eos is None:
            eos = END_OF_TEXT_ID
        if eos is not None and eos >= self.vocab_size:  # transformers' default for any vocab_size
            eos = None
        object.__setattr__(self, "eos_token_id", eos)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able config that transformers reads too (it keeps the keys it doesn't know)."""
        pdrop = {f"{part}_pdrop": self.dropout for part in ("attn", "embd", "resid")}
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            **dataclasses.asdict(self),
            **pdrop,
            "bos_token_id": self.eos_token_id,
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> GPT2Config:
        """Reads our or Hugging Face's config; its `*_pdrop` are ignored: dropout is off by default.

        Raises:
            ValueError: for an architecture that is not GPT-2, or a variant not implemented here.
        """
        kind, architectures = config.get("model_type"), config.get("architectures") or []
        if kind != "gpt2" and not (kind is None and str(architectures).startswith("['GPT2")):
            raise ValueError(
                f"config is of model_type={kind!r}, architectures={architectures}: only GPT-2"
                " (model_type 'gpt2') can be loaded"
            )
        for name, known in _IMPLEMENTED.items():
            if name in config and config[name] not in known:
                raise ValueError(
                    f"config has {name}={config[name]!r}, a variant of GPT-2 that is not"
                    f" implemented: only {' or '.join(map(repr, known))} is"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        ours = {name: value for name, value in config.items() if name in names}
        if not isinstance(ours.get("eos_token_id"), int):  # transformers also allows lists
            ours["eos_token_id"] = None
        return cls(**ours)


# What a GPT-2 config of transformers may say for the network below to be that network.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


class KVCache:
    """The keys and values a model has computed, in static buffers, so that no token is read twice.

    Rows may stand at different lengths: a new token is stored at its own position and sees what is
    stored at or before it, never the garbage behind. A row is restarted by writing from position 0.

    Attributes:
        layers: for each layer its keys and values, two tensors of shape (B, H, L, D).
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes an empty cache for `batch_size` rows of `max_length` (default: all) positions."""
        self.batch_size = batch_size
        self.max_length = max_length or config.n_positions
        shape = (batch_size, config.n_head, self.max_length, config.n_embd // config.n_head)
        self.layers = [
            (
                torch.zeros(shape, device=device, dtype=dtype),
                torch.zeros(shape, device=device, dtype=dtype),
            )
            for _ in range(config.n_layer)
        ]

    def slots(
        self,
        positions: Tensor,
        rows: Tensor | None = None,
        length: int | None = None,
        *,
        prefill: bool = False,
    ) -> Slots:
        """Works out once, for all layers, where one forward pass writes and what it may see."""
        where = torch.arange(self.batch_size, device=positions.device) if rows is None else rows
        if len(where) != len(positions):
            raise ValueError(
                f"ids holds {len(positions)} rows but the cache is read at {len(where)}: pass"
                " cache_rows, the cache's row for each row of ids"
            )
        known = _readable(positions)
        size = positions.shape[1]
        reach = size if prefill else int(positions.max()) + 1 if known else 1
        if reach > self.max_length:
            raise ValueError(
                f"positions reach {reach - 1}, the cache holds max_length={self.max_length}: make"
                " a longer one"
            )
        in_step = prefill or (known and size == 1 and int(positions.min()) == reach - 1)
        columns = slice(reach - size, reach) if in_step and rows is None else None
        if prefill:
            return Slots(where[:, None], positions, columns, rows, None, None)
        if length is None:
            length = reach if known else self.max_length
        elif not reach <= length <= self.max_length:
            raise ValueError(
                f"cache_length={length} must lie between the largest position + 1 and the cache's"
                f" max_length={self.max_length}"
            )
        if in_step and length == reach:  # one new token, which sees all: the usual rollout
            return Slots(where[:, None], positions, columns, rows, length, None)
        stored = torch.arange(length, device=positions.device)
        mask = stored <= positions[:, None, :, None]  # (B, 1, S, L)
        return Slots(where[:, None], positions, columns, rows, length, mask)


class Slots(NamedTuple):
    """Where one forward pass writes its keys and values, and which of the stored ones it reads."""

    write_rows: Tensor  # (B, 1)
    positions: Tensor  # (B, S)
    columns: slice | None  # these positions, where all rows of the cache write to the same
    read_rows: Tensor | None  # (B,), or None: all rows, without a copy
    length: int | None  # stored positions to read, or None: only the pass's own, causally
    mask: Tensor | None  # (B, 1, S, L), or None: all of them

    def update(self, stored: Tensor, new: Tensor) -> Tensor:
        """Writes `new` (B, H, S, D) into one layer's buffer, returns what the pass sees."""
        new = new.to(stored.dtype)
        if self.columns is not None:
            stored[:, :, self.columns] = new
        else:
            stored[self.write_rows, :, self.positions] = new.transpose(1, 2)
        if self.length is None:
            return new
        stored = stored[:, :, : self.length]  # (B, H, L, D)
        return stored if self.read_rows is None else stored.index_select(0, self.read_rows)


def _dropout(x: Tensor, p: float, training: bool) -> Tensor:
    # Even a call that does nothing would be a few percent of a small model's token.
    return F.dropout(x, p) if training and p else x


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
        kv: tuple[Tensor, Tensor] | None = None,
        slots: Slots | None = None,
    ) -> Tensor:
        """(B, S, C) to (B, S, C), with this layer's cached keys and values `kv` where given."""
        B, S, C = x.shape
        qkv = self.c_attn(x).view(B, S, 3, self.n_head, C // self.n_head)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, S, D)
        if kv is not None and slots is not None:
            q, k, v = q.to(kv[0].dtype), slots.update(kv[0], k), slots.update(kv[1], v)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=slots.mask if slots else None,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=slots is None or slots.length is None,
        )
        y = self.c_proj(y.transpose(1, 2).reshape(B, S, C))
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
        kv: tuple[Tensor, Tensor] | None = None,
        slots: Slots | None = None,
    ) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        x = x + self.attn(self.ln_1(x), kv, slots)
        return x + self.mlp(self.ln_2(x))


class CUDAGraphs:
    """Functions of CUDA tensors, replayed as CUDA graphs: launching small kernels takes longer than they.

    A function may not look at a tensor's values. It is told apart by a key: run as it is the first time,
    which warms up, captured the second, replayed from then on. The last few are kept.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._calls: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor] | None] = {}

    def run(self, key: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`; the same key means the same function, and inputs of the same shapes."""
        if key not in self._calls:
            if len(self._calls) == self.most:
                self._calls.pop(next(iter(self._calls)))
            self._calls[key] = None
            return function(*inputs)
        call = self._calls[key]
        if call is None:
            own, graph = tuple(x.clone() for x in inputs), torch.cuda.CUDAGraph()
            # Weights that autocast has made half before are not part of the graph, nor are its own of
            # use elsewhere.
            torch.clear_autocast_cache()
            with torch.cuda.graph(graph):
                output = function(*own)
            torch.clear_autocast_cache()
            call = self._calls[key] = graph, own, output
        graph, own, output = call
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return output.clone()

    def __deepcopy__(self, memo: Any) -> CUDAGraphs:
        return CUDAGraphs(self.most)  # a copied model has other weights

    def __reduce__(self) -> tuple[Any, ...]:
        return CUDAGraphs, (self.most,)


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
        self._graphs = CUDAGraphs()
        # 2 * n_layer branches add to the residual stream: scaled so that its variance doesn't grow.
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

    def new_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache on the model's device, in the dtype it computes in (autocast's if on)."""
        device = self.wte.weight.device
        half = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if half else self.wte.weight.dtype
        return KVCache(self.config, batch_size, max_length, device, dtype)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        cache_rows: Tensor | None = None,
        cache_length: int | None = None,
    ) -> Tensor:
        """The last layer's output after `ln_f`: (B, S) int64 to (B, S, C), what `head` reads.

        Without `positions` row by row the ids are a text from its start; a token sees those before
        it. Pad on the right: nothing looks there. With `positions` and a cache, ids continue what
        the cache holds: each is stored at its position and sees all that is stored at or before it.
        Padding of a ragged chunk may be written behind a row's end: later tokens replace it.

        Args:
            ids: rows of the vocabulary, (B, S) int64.
            positions: position of each id, (B, S) int64, distinct within a row; None: 0 … S - 1.
                Without a cache they only choose the position embedding.
            cache: keys and values to write and, with `positions`, to read; under `torch.no_grad`.
            cache_rows: the cache's row for each row of ids, (B,) int64, distinct; None: all.
            cache_length: how many cached positions to look at, at least the largest position + 1;
                None: just that on a CPU, all on a GPU, where finding out would be a sync.

        Raises:
            TypeError: if `ids` is not int64.
            ValueError: for a text longer than `n_positions`, or a cache that does not fit.
        """
        if ids.dtype != torch.int64:
            raise TypeError(f"ids is of {ids.dtype}: token ids must be torch.int64")
        if ids.ndim != 2:
            raise ValueError(f"ids has shape {tuple(ids.shape)}: it must be (B, S), rows of tokens")
        if ids.shape[1] > self.config.n_positions:
            raise ValueError(
                f"ids holds {ids.shape[1]} positions, the model reads n_positions="
                f"{self.config.n_positions}: shorten the texts"
            )
        slots, from_start = None, positions is None
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        if cache is not None:
            if torch.is_grad_enabled():
                raise ValueError("cache holds no gradients: use it under torch.no_grad()")
            slots = cache.slots(positions, cache_rows, cache_length, prefill=from_start)
        x = self.wte(ids) + self.wpe(positions)  # (B, S, C)
        x = _dropout(x, self.config.dropout, self.training)
        for i, block in enumerate(self.h):
            x = block(x, cache.layers[i] if cache is not None else None, slots)
        return self.ln_f(x)

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (…, V) of `hidden` (…, C), or only those (…, K) of the vocabulary's `rows` (K,)."""
        weight = self.wte.weight if rows is None else self.wte.weight[rows]
        return F.linear(hidden, weight)

    def log_probs(
        self, hidden: Tensor, tokens: Tensor, entropies: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of tokens, and entropies of the distributions that they were drawn from.

        The same as a log-softmax of `head(hidden)`, but logits (N, V) that are large are never held as a
        whole: they are made a few rows at a time, and made again for the gradient.

        Args:
            hidden: the last layer where each token is decided, (N, C).
            tokens: (N,) int64.
            entropies: False leaves them 0, which saves time.

        Returns:
            Two float32 tensors of shape (N,); float64 for a model of double precision.
        """
        # Whether a gradient is wanted can't be asked within.
        return _LogProbs.apply(hidden, self.wte.weight, tokens, entropies, torch.is_grad_enabled())

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
                ids,
                positions,
                cache=cache,
                cache_rows=cache_rows,
                cache_length=cache_length,
            )
        )

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
            lengths: length of each prompt, (B,) int64; None: T.
            end_index: the row that ends a text; None: the model's own, if it has one; -1: none.
            generator: source of the one uniform number drawn per row and step.
            cuda_graph: captures the whole generation as a CUDA graph when it is asked for a second
                time, and replays it from then on: same sizes, settings and memory of the weights.

        Returns:
            The new tokens, (B, max_new_tokens) int64; `end_index` fills a row behind its end.
            A row's tokens do not depend on when the others end.

        Raises:
            ValueError: for a text longer than `n_positions`, or an argument out of range.
        """
        B, T = ids.shape
        end = self.end_index if end_index is None else end_index
        lengths = torch.full((B,), T, device=ids.device) if lengths is None else lengths
        self._check_generate(ids, max_new_tokens, temperature, top_k, lengths, end)
        # A number for every row and step, used or not, keeps the others' draws their own.
        numbers: dict[str, Any] = {"dtype": torch.float64, "device": ids.device}
        u = None if greedy else torch.rand(max_new_tokens, B, generator=generator, **numbers)
        settings = max_new_tokens, temperature, top_k, end
        if not cuda_graph:
            return self._continue(ids, lengths, u, *settings)
        if ids.device.type != "cuda":
            raise ValueError(f"cuda_graph=True needs a CUDA device, and ids are on {ids.device}")
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        weights = tuple(parameter.data_ptr() for parameter in self.parameters())
        return self._graphs.run(
            (ids.shape, settings, greedy, half, weights),
            lambda ids, lengths, u=None: self._continue(ids, lengths, u, *settings),
            *((ids, lengths) if u is None else (ids, lengths, u)),
        )

    def _continue(
        self,
        ids: Tensor,
        lengths: Tensor,
        u: Tensor | None,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        end: int | None,
    ) -> Tensor:
        """`generate`, drawing with the uniform numbers `u` (max_new_tokens, B), or greedily without."""
        B, T = ids.shape
        readable = _readable(ids)
        cache = self.new_cache(B, T + max_new_tokens - 1)
        new = torch.full((B, max_new_tokens), -1 if end is None else end, device=ids.device)
        rows = torch.arange(B, device=ids.device)
        live: Tensor | None = None  # the rows that have not ended; None: all
        hidden = self.hidden(ids, cache=cache)[rows, lengths - 1]  # (B, C)
        for step in range(max_new_tokens):
            logits = _at_least_float32(self.head(hidden))
            if u is None:
                token = logits.argmax(-1)
            else:
                drawn = u[step] if live is None else u[step, live]
                token = sample(warp(logits, temperature, top_k), u=drawn)
            if live is None:
                new[:, step] = token
            else:
                new[live, step] = token
            if step + 1 == max_new_tokens:
                break
            # On a GPU all rows go on: to look which have ended would be to wait for it at every token.
            if readable and end is not None and not bool((goes_on := token != end).all()):
                live = (rows if live is None else live)[goes_on]
                token = token[goes_on]
                if not len(live):
                    break
            positions = (lengths if live is None else lengths[live]) + step
            hidden = self.hidden(token[:, None], positions[:, None], cache=cache, cache_rows=live)
            hidden = hidden[:, 0]
        if not readable and end is not None:
            ended = new == end
            new.masked_fill_(ended.cumsum(1) > ended.long(), end)
        return new

    def _check_generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        lengths: Tensor,
        end: int | None,
    ) -> None:
        B, T = ids.shape
        n_positions, vocab_size = self.config.n_positions, self.config.vocab_size
        if B < 1:
            raise ValueError("ids holds no row: give at least one prompt")
        if _readable(ids) and T and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise ValueError(
                f"ids hold {int(ids.min())} to {int(ids.max())}: each must be a row of the vocabulary,"
                f" in [0, {vocab_size})"
            )
        if T < 1 or max_new_tokens < 1 or T + max_new_tokens - 1 > n_positions:
            raise ValueError(
                f"ids of {T} positions and max_new_tokens={max_new_tokens} do not fit the model:"
                f" both are at least 1, and n_positions={n_positions} holds all tokens but the last"
            )
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0: pass greedy=True for 0")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1, or None for all tokens")
        if lengths.shape != (B,) or not bool(((lengths >= 1) & (lengths <= T)).all()):
            raise ValueError(
                f"lengths holds {lengths.tolist()[:8]}: it must hold, for each of the {B} rows of"
                f" ids, how many of its {T} positions are the prompt, at least 1"
            )
        if end is not None and not -1 <= end < vocab_size:
            raise ValueError(
                f"end_index={end} must be a row of the vocabulary, in [0, {vocab_size}), or -1 for"
                " texts that do not end"
            )

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
                " restrict to tokens it holds"
            )
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        state["wte.weight"] = state["wte.weight"][[row_of[i] for i in wanted]]
        config = dataclasses.replace(
            self.config, vocab_size=len(wanted), token_ids=tuple(wanted), eos_token_id=None
        )
        return self._from_state(config, state).train(self.training)

    @classmethod
    def _from_state(cls, config: GPT2Config, state: dict[str, Tensor]) -> GPT2:
        with torch.device("meta"):  # no memory and no random numbers for weights to be replaced
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model

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
        locate = _locator(os.fspath(name_or_path), revision, local_files_only)
        config_file = locate("config.json")
        if config_file is None:
            raise FileNotFoundError(f"{name_or_path} holds no config.json: is it a model's folder?")
        try:
            values = json.loads(config_file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_file} is damaged or truncated: fetch it again") from error
        config = GPT2Config.from_dict(values)
        if dropout is not None:
            config = dataclasses.replace(config, dropout=dropout)
        weights = _read_weights(locate, str(name_or_path), allow_pickle)
        return cls._from_state(config, _import_weights(weights, config, dtype)).eval()

    def save_pretrained(
        self, directory: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Writes config.json and model.safetensors, for transformers or `from_pretrained`.

        Both files are written under temporary names before either is renamed: a save that fails
        leaves an earlier one as it was.

        Args:
            directory: made if missing.
            dtype: of the written weights, such as `torch.float16`; None: as they are.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = dtype or self.wte.weight.dtype
        weights = {
            "transformer." + name: (tensor.t() if _is_conv1d(name) else tensor)
            .to("cpu", dtype)
            .contiguous()
            for name, tensor in self.state_dict().items()
        }
        config = self.config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
        with (
            _replacing(folder / "config.json") as config_file,
            _replacing(folder / "model.safetensors") as weights_file,
        ):
            config_file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            save_file(weights, weights_file, metadata={"format": "pt"})


# How many rows of logits are made at a time, forwards and backwards, and how many probabilities are kept for the
# gradient. Few rows stay in the processor's cache; backwards each part also passes over weight's whole gradient.
_LOGITS = {"cpu": (128, 384, 2**26), "cuda": (4096, 4096, 2**30)}


class _LogProbs(torch.autograd.Function):
    """`GPT2.log_probs`: p = softmax(z), z = hidden · weightᵀ, a part of the rows at a time.

    d log p_token / dz = onehot(token) - p, and d entropy / dz = -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, entropies: bool, grad: bool
    ) -> tuple[Tensor, Tensor]:
        kind, (N, V) = hidden.device.type, (len(hidden), len(weight))
        size, ctx.size, kept = _LOGITS[kind]
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        h, w = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        room = _Workspace(min(size, N), w)
        log_prob = hidden.new_empty(N, dtype=room.wide.dtype)
        entropy = torch.zeros_like(log_prob)
        keep = grad and kept >= N * V and any(ctx.needs_input_grad)
        held = [room.wide.new_empty(N, V)] if keep else []
        for part in _parts(N, size):
            log_p = room.log_softmax(h[part], w)
            log_prob[part] = log_p.gather(1, tokens[part, None])[:, 0]
            if keep or entropies:
                p = torch.exp(log_p, out=held[0][part] if keep else room.wide[: len(log_p)])
            if entropies:
                entropy[part] = -log_p.mul_(p).sum(-1)
        ctx.save_for_backward(hidden, weight, tokens, entropy, *held)
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, entropy, *held = ctx.saved_tensors
        if grad_log_prob is None:
            grad_log_prob = torch.zeros_like(entropy)
        h, w = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        room = _Workspace(min(ctx.size, len(h)), w)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        product = torch.empty_like(w) if w.dtype != grad_weight.dtype else None
        for part in _parts(len(h), ctx.size):
            p = held[0][part] if held else room.log_softmax(h[part], w).exp_()
            slope = -grad_log_prob[part, None]
            if grad_entropy is not None:
                slope = slope - grad_entropy[part, None] * entropy[part, None]
            grad_z = torch.mul(p, slope, out=room.wide[: len(p)])
            if grad_entropy is not None:
                grad_z -= grad_entropy[part, None] * torch.xlogy(p, p)
            grad_z.scatter_add_(1, tokens[part, None], grad_log_prob[part, None])
            if grad_z.dtype != h.dtype:
                grad_z = room.logits[: len(p)].copy_(grad_z)
            grad_hidden[part] = grad_z @ w
            if product is None:
                grad_weight.addmm_(grad_z.t(), h[part])
            else:
                torch.mm(grad_z.t(), h[part], out=product)
                for some in _parts(len(product), 4096):  # a sum of two dtypes widens a copy first
                    grad_weight[some] += product[some]
        return grad_hidden, grad_weight, None, None, None


def _parts(N: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, N, size)]


class _Workspace:
    """Room for one part's logits, used again for the next: a CPU takes longer to get it than to fill it.

    Attributes:
        logits: (rows, V) in the dtype of the weight.
        wide: (rows, V) in at least float32: `logits` itself, or a copy.
    """

    def __init__(self, rows: int, weight: Tensor) -> None:
        self.logits = weight.new_empty(rows, len(weight))
        wide = _at_least_float32(weight[:0]).dtype
        same = wide == weight.dtype
        self.wide = self.logits if same else torch.empty_like(self.logits, dtype=wide)

    @cached_property
    def _log_p(self) -> Tensor:
        return torch.empty_like(self.wide)

    def log_softmax(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Log-probabilities (n, V) of hidden (n, C); `wide` is free again."""
        n = len(hidden)
        torch.mm(hidden, weight.t(), out=self.logits[:n])
        if self.wide is not self.logits:
            self.wide[:n] = self.logits[:n]
        return torch.log_softmax(self.wide[:n], -1, out=self._log_p[:n])


def _readable(x: Tensor) -> bool:
    """Whether a look at the values is free; on a GPU it would wait for all that is under way."""
    return x.device.type == "cpu"


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def warp(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Logits (…, V) of the distribution that temperature and top-k sampling draw from."""
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    return logits


def sample(
    logits: Tensor, generator: torch.Generator | None = None, *, u: Tensor | None = None
) -> Tensor:
    """Draws from softmax(logits), one uniform number a row, by inverting the cumulative sum.

    torch.multinomial draws a number for every entry of the vocabulary, many times the cost. Here
    the sum is searched in two levels, blocks of about sqrt(V) entries and then within one, so that
    no cumulative sum runs over V. Entries of probability zero are never drawn.

    Args:
        logits: (…, V), float16 and bfloat16 are raised to float32.
        generator: source of the uniform numbers; None: torch's global one.
        u: these numbers instead, in [0, 1), (…) float64.

    Returns:
        Indices, (…) int64.

    Raises:
        ValueError: for NaN, infinity, or a row of only -inf (on a GPU not checked: it would wait).
    """
    p = _at_least_float32(logits).softmax(-1).reshape(-1, logits.shape[-1])  # (B, V)
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
    if _readable(p) and not math.isfinite(total.sum().item()):
        raise ValueError("logits holds NaN, infinity or a row of only -inf: nothing can be drawn")
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

    Its weight is positive: where a sum first exceeds the target, it has grown.
    """
    # Rounding may leave the target at or behind the end: then it is the last positive entry's.
    end = torch.nextafter(cumulative[:, -1:], target.new_zeros(()))
    target = torch.minimum(target, end).contiguous()
    index = torch.searchsorted(cumulative, target, right=True)
    index = index.clamp(max=weights.shape[1] - 1)  # a GPU's NaN, for which see `sample`
    before = cumulative.gather(1, index) - weights.gather(1, index)
    return index, (target - before).clamp(min=0)  # rounding may not lead in front of the entry


def _locator(
    name: str, revision: str | None, local_files_only: bool
) -> Callable[[str], Path | None]:
    """A function from a file's name to its path, None if the model `name` has no such file."""
    folder = Path(name).expanduser()
    if name == "reviews":
        folder = Path(str(resources.files("agents"))) / "data" / "reviews"
        if not folder.is_dir():
            raise FileNotFoundError(
                "the model 'reviews' is missing from this installation of the package: reinstall"
                " it, or pass the directory of another GPT-2"
            )
    if folder.is_dir():
        return lambda file: path if (path := folder / file).is_file() else None
    if folder.is_absolute() or name.startswith((".", "~")):
        raise FileNotFoundError(f"{name} is no directory: pass that of a GPT-2, or a hub name")

    from huggingface_hub import errors, hf_hub_download

    def download(file: str) -> Path | None:
        try:
            return Path(
                hf_hub_download(name, file, revision=revision, local_files_only=local_files_only)
            )
        except errors.LocalEntryNotFoundError as error:  # no connection, or not wanted
            if file != "config.json":
                return None
            cause: Exception = error
        except errors.EntryNotFoundError:
            return None
        except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
            cause = error
        where = "in the local cache" if local_files_only else "on the Hugging Face hub"
        raise FileNotFoundError(
            f"{name!r} could not be read {where} ({type(cause).__name__}). On a machine without the"
            " hub pass the path of a directory that holds its config.json and model.safetensors,"
            " or 'reviews', the model in this package"
        ) from cause

    return download


def _read_weights(
    locate: Callable[[str], Path | None], name: str, allow_pickle: bool
) -> dict[str, Tensor]:
    """A checkpoint's tensors under their own names, from one file or from shards."""
    files = [locate("model.safetensors")]
    if files == [None] and (index := locate("model.safetensors.index.json")):
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        files = [locate(shard) for shard in shards]
        if None in files:
            lost = [shard for shard, file in zip(shards, files, strict=True) if file is None]
            raise FileNotFoundError(f"{name} lacks {lost} of its shards: fetch it again")
    if files == [None] and allow_pickle and (file := locate("pytorch_model.bin")):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{file} is damaged or truncated: fetch it again") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        if file is None:
            raise FileNotFoundError(
                f"{name} holds no model.safetensors, or none could be fetched: if it holds a"
                " pytorch_model.bin that you trust, pass allow_pickle=True"
            )
        try:
            weights |= load_file(file)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is damaged or truncated: fetch it again") from error
    return weights


def _is_conv1d(name: str) -> bool:
    """Whether Hugging Face keeps this weight as (in, out), the transpose of `nn.Linear`'s."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _import_weights(
    weights: dict[str, Tensor], config: GPT2Config, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Hugging Face's tensors as our state dict, every name and shape checked."""
    # Old files carry the causal mask as buffers, h.0.attn.bias and h.0.attn.masked_bias.
    given = {
        name.removeprefix("transformer."): tensor
        for name, tensor in weights.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    head = given.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, given.get("wte.weight", head)):
        raise ValueError(
            "lm_head.weight differs from wte.weight: GPT-2's head is its token embedding, and an"
            " untied one is not implemented"
        )
    with torch.device("meta"):
        expected = GPT2(config).state_dict()
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise ValueError(
            f"the weights are not those of the config's GPT-2: missing {sorted(missing)[:6]},"
            f" unexpected {sorted(unexpected)[:6]}"
        )
    state = {}
    for name, meta in expected.items():
        tensor, shape = given[name], meta.t().shape if _is_conv1d(name) else meta.shape
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the config makes it {tuple(shape)}:"
                " config.json and the weights are of different models"
            )
        # A copy, for the loaded tensors share the file's memory map.
        state[name] = torch.empty(meta.shape, dtype=dtype).copy_(
            tensor.t() if _is_conv1d(name) else tensor
        )
    return state


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Yields a temporary path beside `file` and renames it to `file` once it is written."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors lets none but the owner read
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
