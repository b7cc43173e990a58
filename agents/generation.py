"""Text in, texts out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from agents.gpt2 import GPT2
from text_sentiment_env import checks
from text_sentiment_env.vocabulary import GPT2_VOCABULARY_SIZE, Vocabulary


def vocabulary_of(gpt2: GPT2) -> Vocabulary:
    """The vocabulary of a model's rows.

    Raises:
        ValueError: if its rows are not GPT-2's tokens, `<|endoftext|>` last.
    """
    ids = gpt2.token_ids or list(range(gpt2.config.vocab_size))
    if len(ids) > GPT2_VOCABULARY_SIZE:
        raise ValueError(
            f"the model has {len(ids):,} rows, more than GPT-2 has tokens, such as one for padding:"
            f" leave them out by gpt2.restrict(range({GPT2_VOCABULARY_SIZE}))"
        )
    vocabulary = Vocabulary(ids)
    if vocabulary.token_ids.tolist() != ids:
        raise ValueError(
            f"the model's {len(ids)} rows do not end with <|endoftext|> (50256): its texts have no"
            " end. Use a model of this package, or GPT-2's full vocabulary"
        )
    return vocabulary


def generate_text(
    gpt2: GPT2,
    prompt: str = "",
    n: int = 1,
    *,
    max_tokens: int = 20,
    temperature: float = 1.0,
    top_k: int | None = None,
    greedy: bool = False,
    seed: int | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> list[str]:
    """Continues a prompt `n` times.

    Args:
        gpt2: a model of GPT-2's tokens, or of some of them.
        prompt: the beginning of each text.
        n: how many texts.
        max_tokens: the most tokens to add; less where the model's positions end.
        temperature, top_k, greedy: as for `GPT2.generate`.
        seed: of the draws; None: torch's global generator.
        autocast: the context to compute in.

    Returns:
        The texts, the prompt included.

    Raises:
        ValueError: for a prompt outside the model's vocabulary or as long as its positions.
    """
    if n < 1 or max_tokens < 1:
        raise ValueError(f"n={n} and max_tokens={max_tokens} must be at least 1")
    vocabulary = vocabulary_of(gpt2)
    ids = [vocabulary.end_index, *vocabulary.encode(prompt).tolist()]
    room = gpt2.config.n_positions + 1 - len(ids)
    if room < 1:
        raise ValueError(
            f"prompt has {len(ids) - 1} tokens, the model reads {gpt2.config.n_positions - 1} and"
            " end-of-text: shorten it"
        )
    device = gpt2.wte.weight.device
    seed = checks.seed("seed", seed, most=2**64 - 1)
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    with autocast or nullcontext():
        new = gpt2.generate(
            torch.tensor([ids] * n, device=device),
            min(max_tokens, room),
            temperature=temperature,
            top_k=top_k,
            greedy=greedy,
            end_index=vocabulary.end_index,
            generator=generator,
        )
    return [vocabulary.decode([*ids[1:], *row]) for row in new.tolist()]
