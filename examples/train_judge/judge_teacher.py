"""The large classifier that labels the judge's texts: fine-tuned on SST-2, then asked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from judge_data import as_written
from judge_training import batches
from torch.nn import functional as F
from tqdm.auto import tqdm

from agents.atomic import atomic_write

log = logging.getLogger("train_judge")


def fine_tune(
    encoder: str,
    rows: Sequence[tuple[str, int]],
    folder: Path,
    *,
    device: torch.device,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    seed: int = 0,
) -> None:
    """Makes a pretrained encoder a sentiment classifier, and writes it to `folder`.

    One pass over the texts of `rows`, every second one as people write it. SST-2 is mostly phrases, and
    whole sentences are rare and long: a text of n words is kept with probability n / 24. The
    embeddings and the lowest third of the layers stay as they are, which halves the time.

    Args:
        encoder: Hugging Face id or folder.
        rows: texts with 0 or 1.
        folder: where the classifier goes; nothing is done if it is there.
        device: where to train.
        batch_size: texts of like length in each step.
        learning_rate: AdamW's highest; a tenth of the steps lead to it, and it falls to 0.
        seed: of the order of texts, the new layers and dropout.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if folder.exists():
        return
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kept = [row for row in rows if rng.random() < len(row[0].split()) / 24]
    kept = [(as_written(t), y) if i % 2 else (t, y) for i, (t, y) in enumerate(kept)]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1}
    ).to(device)
    body = model.base_model
    for part in [body.embeddings, *body.encoder.layer[: len(body.encoder.layer) // 3]]:
        part.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, learning_rate, weight_decay=0.01)
    ids = tokenizer([text for text, _ in kept], truncation=True, max_length=64)["input_ids"]
    order = batches(ids, batch_size, rng)
    model.train()
    losses: list[float] = []
    for step, index in enumerate(bar := tqdm(order, desc="teacher", mininterval=10)):
        rate = min(1.0, 10 * (step + 1) / len(order)) * (1 - step / len(order))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        batch = tokenizer.pad({"input_ids": [ids[i] for i in index]}, return_tensors="pt")
        wanted = torch.tensor([kept[i][1] for i in index], device=device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(**batch.to(device)).logits
        loss = F.cross_entropy(logits.float(), wanted, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
    _save(model, tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a folder whole or not at all."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


class Teacher:
    """A Hugging Face classifier: its log-odds of "positive", and its state for a text."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device, self.tokenizer = device, AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name)
        self.model = model.to(device, torch.bfloat16).eval()
        labels = {str(label).lower(): i for i, label in model.config.id2label.items()}
        if not {"positive", "negative"} <= labels.keys():
            raise ValueError(
                f"--teacher {name}: its labels {sorted(labels)} hold no positive/negative"
            )
        self.positive, self.negative = labels["positive"], labels["negative"]

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        ids = self.tokenizer(list(texts), truncation=True, max_length=64)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        while order:
            count = max(1, min(256, 6144 // len(ids[order[0]])))
            batch, order = order[:count], order[count:]
            padded = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            yield batch, padded.to(self.device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The log-odds of positive for each text."""
        out = np.zeros(len(texts), np.float32)
        for batch, inputs in self._batches(texts):
            logits = self.model(**inputs).logits.float()
            out[batch] = (logits[:, self.positive] - logits[:, self.negative]).cpu().numpy()
        return out

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The mean of the last hidden states over each text."""
        out = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        for batch, inputs in self._batches(texts):
            hidden = self.model.base_model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            out[batch] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
        return out


def label_corpus(
    teacher: Callable[[Sequence[str]], npt.NDArray[np.float32]], texts: Sequence[str], folder: Path
) -> npt.NDArray[np.float32]:
    """The teacher's log-odds, in shards of 20,000 that survive an interruption."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in tqdm(range(0, len(texts), 20_000), desc=f"labels {folder.name}"):
        path = folder / f"{start // 20_000:04d}.npy"
        if not path.exists():
            labels = teacher(texts[start : start + 20_000])
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.save(file, labels)
        shards.append(np.load(path))
    return np.concatenate(shards)
