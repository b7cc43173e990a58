"""A reader that shares nothing with the project's GPT-2: any causal language model of transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from review_batches import IGNORED
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

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

    def fine_tune(
        self,
        sentences: Sequence[str],
        lr: float = 1e-4,
        batch_size: int = 64,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        """One pass over the sentences: AdamW, a linear schedule to 0, bf16 autocast.

        A batch holds sentences of like length, so that little is padding; the batches' order is random.
        """
        rows = sorted(self._tokens(sentences), key=len)
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        random.Random(seed).shuffle(batches)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, len(batches))
        self.model.train()
        for batch in tqdm(batches, "fine-tuning the reader", disable=quiet):
            with torch.autocast(self.model.device.type, torch.bfloat16):
                loss = self._nats(batch) / sum(map(len, batch))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        self.model.eval()

    @torch.inference_mode()
    def perplexities(self, sentences: Sequence[str]) -> dict[str, float]:
        """As `Reader.perplexities`; a line break ends each text, and counts as no word."""
        rows = self._tokens(sentences)
        tokens, words = sum(map(len, rows)), sum(len(s.split()) for s in sentences)
        rows.sort(key=len)
        nats = sum(self._nats(rows[i : i + 64]).item() for i in range(0, len(rows), 64))
        return {
            "sentences": len(sentences),
            "nats_per_token": nats / tokens,
            "perplexity_per_token": float(np.exp(nats / tokens)),
            "perplexity_per_word": float(np.exp(nats / words)),
        }

    def _tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        lines = [f"{sentence.strip()}\n" for sentence in sentences]
        return [self.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]

    def _nats(self, rows: Sequence[list[int]]) -> Tensor:
        """The negative log-likelihood of the rows together, each behind the context; a scalar."""
        context, longest = self.tokenizer(CONTEXT)["input_ids"], max(map(len, rows))
        # Nothing looks ahead, so padding at the end needs no mask.
        ids = torch.tensor([context + row + [0] * (longest - len(row)) for row in rows])
        targets = torch.full_like(ids, IGNORED)
        for row, target in zip(rows, targets, strict=True):
            target[len(context) : len(context) + len(row)] = torch.tensor(row)
        device = self.model.device
        logits: Tensor = self.model(input_ids=ids.to(device)).logits[:, :-1].float()
        wanted = targets[:, 1:].to(device)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
