"""The shape of a GPT-2, under Hugging Face's names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from text_sentiment_env import checks
from text_sentiment_env.vocabulary import END_OF_TEXT_ID


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
            if name != "n_inner" or self.n_inner is not None:
                checks.whole_number(name, getattr(self, name), 1, 10**8)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}: change one"
            )
        for name in ("dropout", "layer_norm_epsilon"):
            if checks.weight(name, value := getattr(self, name)) >= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1)")
        eos = self.eos_token_id
        if self.token_ids is not None:
            ids = checks.whole_numbers("token_ids", self.token_ids)
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
