"""Training of the bundled GPT-2 in stages, resumable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pretrain_options import Args
from review_batches import IGNORED, Corpus, batches_from, collate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from agents.gpt2 import GPT2

log = logging.getLogger("pretrain_gpt2")


class Stage(NamedTuple):
    """A number of steps on a corpus."""

    steps: int
    corpus: Corpus


def training_loss(model: GPT2, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the targets that are not padding."""
    # On CPUs, at these lengths, the plain attention is faster than the fused one.
    plain = inputs.device.type == "cpu"
    with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
        hidden = model.hidden(inputs)[targets != IGNORED]
    log_p, _ = model.log_probs(hidden, targets[targets != IGNORED], entropies=False)
    return -log_p.mean()


def make_optimizers(model: GPT2, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings and vectors.

    Muon's update is scaled to the size of AdamW's, so that one learning rate serves both.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("h.")]
    embeddings = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": embeddings, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True),
    ]


def lr_at(step: int, steps: int, args: Args) -> float:
    """Warm-up, a plateau, and a linear descent to 0 over the last `decay` of the steps."""
    left = (steps - step) / max(1, args.decay * steps)
    return args.lr * min(1.0, (step + 1) / max(1, args.warmup), left)


class Checkpoint(NamedTuple):
    """A file from which a run goes on as if nothing had happened, and what must not change.

    Everything random in training is drawn from (seed, stage, epoch): step, weights and optimizers'
    state are all there is to keep.
    """

    path: Path
    fixed: dict[str, Any]

    def save(self, model: GPT2, optimizers: list[torch.optim.Optimizer], history: dict) -> None:
        """Writes under another name and renames: an interruption leaves the last one whole."""
        states = [optimizer.state_dict() for optimizer in optimizers]
        state = {"model": model.state_dict(), "optimizers": states, "history": history}
        torch.save(state | {"fixed": self.fixed}, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def load(self, model: GPT2, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """The history to continue, after loading the states; a new one if there is no file."""
        if not self.path.is_file():
            return {"step": 0, "tokens": 0, "seconds": 0.0, "validation": {}}
        state = torch.load(self.path, map_location=model.wte.weight.device, weights_only=True)
        if state["fixed"] != self.fixed:
            raise ValueError(
                f"{self.path} is of a run with {state['fixed']}, this one has {self.fixed}: give"
                " the same options, or another --work"
            )
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        log.info("resumed %s at step %d", self.path, state["history"]["step"])
        return state["history"]


def fingerprint(model: GPT2, stages: Sequence[Stage]) -> str:
    """A hash of the texts to learn from and of the tokens that their numbers stand for."""
    digest = hashlib.sha256(json.dumps(model.token_ids).encode())
    for stage in stages:
        for array in (*stage.corpus.texts, stage.corpus.repeats, stage.corpus.whole):
            digest.update(array.tobytes() + b"|")
    return digest.hexdigest()[:16]


def run_stages(
    model: GPT2, stages: Sequence[Stage], validation: list[np.ndarray], args: Args
) -> dict[str, Any]:
    """Trains `model` in place, from `--work`'s checkpoint if there is one.

    Returns:
        The `step` reached, the `seconds` and `tokens` it took, and the `validation` losses by step.
    """
    optimizers = make_optimizers(model, args.lr, args.weight_decay)
    names = (
        *("seed", "batch_tokens", "lr", "weight_decay", "warmup", "decay", "precision"),
        *("n_layer", "n_head", "n_embd", "n_positions"),
    )
    fixed = {name: getattr(args, name) for name in names}
    fixed |= {"stages": [stage.steps for stage in stages], "texts": fingerprint(model, stages)}
    checkpoint = Checkpoint(args.work / "checkpoint.pt", fixed)
    history = checkpoint.load(model, optimizers)
    steps = sum(stage.steps for stage in stages)
    progress = tqdm(total=steps, initial=history["step"], unit="step", disable=args.quiet)
    first = 0
    for number, stage in enumerate(stages):
        last = min(first + stage.steps, args.stop_at or steps)
        if history["step"] < last:
            seed = args.seed + 1000 * number
            chunks = batches_from(stage.corpus, args.batch_tokens, seed, history["step"] - first)
            started = time.perf_counter()
            while history["step"] < last:
                lr = lr_at(history["step"], steps, args)
                loss = _step(model, optimizers, next(chunks), lr, args.precision, history)
                progress.update()
                if history["step"] % args.save_every == 0 or history["step"] == last:
                    history["seconds"] += time.perf_counter() - started
                    nats, tokens = nats_and_tokens(model, validation, args.precision)
                    history["validation"][history["step"]] = nats / tokens
                    progress.set_postfix(loss=f"{loss:.3f}", validation=f"{nats / tokens:.3f}")
                    log.info(
                        "step %d: loss %.3f, validation %.4f, %d tokens, %d s",
                        history["step"], loss, nats / tokens, history["tokens"], history["seconds"],
                    )  # fmt: skip
                    checkpoint.save(model, optimizers, history)
                    started = time.perf_counter()
        first += stage.steps
    progress.close()
    model.eval()
    return history


def _step(
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    batch: tuple[list[np.ndarray], np.ndarray],
    lr: float,
    precision: str,
    history: dict[str, Any],
) -> float:
    """One update; counts itself and its tokens in `history`, returns the loss."""
    device, end = model.wte.weight.device, len(model.wte.weight) - 1
    inputs, targets = collate(batch[0], end, rows=16, whole=batch[1])
    model.train()
    with autocast(device, precision):
        loss = training_loss(model, inputs.to(device), targets.to(device))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    history["step"] += 1
    history["tokens"] += int((targets != IGNORED).sum())
    return loss.item()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision for what tolerates it; parameters and optimizer state stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def nats_and_tokens(
    model: GPT2, texts: Sequence[np.ndarray], precision: str = "fp32"
) -> tuple[float, int]:
    """The texts' negative log-likelihood and number of tokens, each text's end counted."""
    end, device = len(model.wte.weight) - 1, model.wte.weight.device
    nats, tokens = 0.0, 0
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), 64):
        inputs, targets = collate(ordered[start : start + 64], end)
        with autocast(device, precision):
            logits = model(inputs.to(device)).float()
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            targets.to(device).flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        nats, tokens = nats + losses.item(), tokens + int((targets != IGNORED).sum())
    return nats, tokens
