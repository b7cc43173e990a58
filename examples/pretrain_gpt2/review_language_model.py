"""A reader that knows nothing of this project: any causal language model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from review_batches import IGNORED
from torch import Tensor
from torch.nn import functional as F

CONTEXT = "A sentence from a film review:\n"
"""What the model reads before each text, so that the first word of a review is no surprise."""


class LanguageModelReader:
    """How likely a pretrained language model finds texts, each after the same line of context."""

    def __init__(self, name: str, device: str) -> None:
        """Loads a model: a Hugging Face id, a folder, or a `.gguf` file (`pip install gguf`)."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path, options = Path(name), {}
        if path.suffix == ".gguf":
            name, options = str(path.parent), {"gguf_file": path.name}
        self.tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
        self.model = model.to(device).eval()

    @torch.inference_mode()
    def perplexities(self, sentences: Sequence[str]) -> dict[str, float]:
        """As `Reader.perplexities`; a line break ends each text, and counts as no word."""
        context = self.tokenizer(CONTEXT)["input_ids"]
        rows = [
            self.tokenizer(f"{sentence.strip()}\n", add_special_tokens=False)["input_ids"]
            for sentence in sentences
        ]
        tokens, words = sum(map(len, rows)), sum(len(s.split()) for s in sentences)
        rows.sort(key=len)
        nats = sum(self._nats(context, rows[i : i + 64]) for i in range(0, len(rows), 64))
        return {
            "sentences": len(sentences),
            "nats_per_token": nats / tokens,
            "perplexity_per_token": float(np.exp(nats / tokens)),
            "perplexity_per_word": float(np.exp(nats / words)),
        }

    def _nats(self, context: list[int], rows: Sequence[list[int]]) -> float:
        """The negative log-likelihood of the rows, each behind the context."""
        longest = max(map(len, rows))
        # Nothing looks ahead, so padding at the end needs no mask.
        ids = torch.tensor([context + row + [0] * (longest - len(row)) for row in rows])
        targets = torch.full_like(ids, IGNORED)
        for row, target in zip(rows, targets, strict=True):
            target[len(context) : len(context) + len(row)] = torch.tensor(row)
        device = self.model.device
        logits: Tensor = self.model(input_ids=ids.to(device)).logits[:, :-1].float()
        wanted = targets[:, 1:].to(device)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
