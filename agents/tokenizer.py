"""Tokenizer files for transformers, which encode and decode as `Vocabulary` does.

With them, `AutoTokenizer` and `pipeline("text-generation")` work on a saved model as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.atomic import atomic_write
from text_sentiment_env.vocabulary import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    Vocabulary,
    byte_characters,
    gpt2_ranks,
)


def write_tokenizer(folder: Path, token_ids: Sequence[int], n_positions: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json.

    A vocabulary with all 256 bytes becomes a byte-pair encoding of GPT-2's merges within it. Any
    other becomes a word-level tokenizer: it has no merges, and raises an error for a word that is not
    one of its tokens. Both put `<|endoftext|>` before a text, as the models of this package read it.

    Args:
        folder: of the model.
        token_ids: the GPT-2 token of each row. Nothing is written if the last is not
            `<|endoftext|>`.
        n_positions: the longest text that the model reads.
    """
    if token_ids[-1] != END_OF_TEXT_ID:
        return
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

    vocabulary = Vocabulary(token_ids)
    end = vocabulary.end_index
    tokenizer = Tokenizer(_model(vocabulary))
    if not vocabulary.encodes_any_text:
        # Word vocabularies hold " movie", not "movie": a text's first word gets its space.
        # It is given to every text and taken from those that need none, because a replacement of
        # width 0 makes tokenizers panic.
        spaceless = Regex(rf"^ (?={'|'.join(_spaceless(vocabulary))})")
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(" "), normalizers.Replace(spaceless, "")]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if marks := _marks(vocabulary):
        # A word list has no merges: "!?" is one piece to GPT-2's pattern, and two words of the list.
        alone = pre_tokenizers.Split(Regex("|".join(map(re.escape, marks))), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer, alone])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A $B",
        special_tokens=[(END_OF_TEXT, end)],
    )
    special = {f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "pad", "unk")}
    ids: dict[str, Any] = {f"{name}_token_id": end for name in ("bos", "eos", "pad")}
    with atomic_write(folder / "tokenizer.json") as file:
        file.write_text(tokenizer.to_str(), "utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": n_positions,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",  # of prompts that are continued
        },
    )
    # Samples the whole softmax, as agents do; transformers' default is top_k=50.
    _write_json(folder / "generation_config.json", ids | {"do_sample": True, "top_k": 0})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _spaceless(vocabulary: Vocabulary) -> list[str]:
    """Patterns of what begins a text as it is: white space, and tokens without a space of their own."""
    patterns = [r"\s"]
    for token in vocabulary.token_bytes[:-1]:
        text = token.decode("utf-8", "replace")
        if not text.startswith(" "):
            # A word must end where its token does.
            end = r"(?!\p{L})" if text.isalpha() else r"(?!\p{N})" if text.isnumeric() else ""
            patterns.append(re.escape(text) + end)
    return patterns


def _marks(vocabulary: Vocabulary) -> list[str]:
    """The tokens of a word list without a letter or digit, as they are spelled, the longest first."""
    if vocabulary.encodes_any_text:
        return []
    texts = [token.decode("utf-8", "replace") for token in vocabulary.token_bytes[:-1]]
    marks = [text for text in texts if text.strip() and not any(map(str.isalnum, text))]
    return sorted((_spell(text.encode()) for text in marks), key=len, reverse=True)


def _spell(token: bytes) -> str:
    characters = byte_characters()
    return "".join(characters[b] for b in token)


def _model(vocabulary: Vocabulary) -> Any:
    from tokenizers import models

    rows = {_spell(t): row for row, t in enumerate(vocabulary.token_bytes[:-1])}
    rows[END_OF_TEXT] = vocabulary.end_index
    if not vocabulary.encodes_any_text:
        return models.WordLevel(rows)
    # tiktoken merges two neighbours whenever their concatenation is a token, the token of lowest
    # rank first. So each token is listed with all its splits, in the order of ranks.
    ranks = gpt2_ranks()
    held = set(vocabulary.token_bytes[:-1])
    merges = [
        (_spell(token[:i]), _spell(token[i:]))
        for token in sorted(held, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in held and token[i:] in held
    ]
    return models.BPE(rows, merges, ignore_merges=True)
