"""Trains the bundled GPT-2, `GPT2.from_pretrained("reviews")`, on sentences of film reviews.

From the Large Movie Review Dataset (Maas et al. 2011) to the shipped files in four steps: clean
sentences, a vocabulary of GPT-2 tokens that can encode any text, training with Muon and AdamW, and
a report on held-out reviews. An interrupted run continues where it stopped when the same command is
given again, with the very numbers it would have had.

    python examples/pretrain_gpt2.py --data DIR       # imdb_{train,unsup,test}.jsonl[.xz] in DIR
    python examples/pretrain_gpt2.py                  # Hugging Face's stanfordnlp/imdb
    python examples/pretrain_gpt2.py --smoke          # seconds, on made-up text
    python examples/pretrain_gpt2.py --data DIR --evaluate reviews      # only the report
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from review_texts import (
    BREAK,
    IGNORED,
    Corpus,
    as_small,
    batches_from,
    choose_vocabulary,
    clean_sentences,
    collate,
    count_tokens,
    encode_gpt2,
    made_up_reviews,
    make_corpus,
    read_reviews,
    sentence_pairs,
    token_ids,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from agents.gpt2 import GPT2, GPT2Config
from text_sentiment_env.vocabulary import END_OF_TEXT_ID, Vocabulary

log = logging.getLogger("pretrain_gpt2")

PROMPTS = [
    "The acting in this film",
    "I watched this movie",
    "The story",
    "My wife and I",
    "If you",
]

# 1. Training -------------------------------------------------------------------------------------


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`, whose logits never exist all at once.

    The logits are the largest tensor of a small model's training by far. A few hundred rows of them
    stay in the cache and yield their gradients at once, which halves the time of a step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        """Of hidden (N, C), weight (V, C) in the same dtype, targets (N,), `rows` at a time."""
        n = len(hidden)
        # A CPU compiles a kernel for every new shape of matrix: rows of zeros, which have no
        # gradient, make a few shapes of thousands.
        hidden = F.pad(hidden, (0, 0, 0, -n % 128))
        targets = F.pad(targets, (0, -n % 128))
        loss = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros(weight.shape, device=hidden.device)
        for part in range(0, len(hidden), rows):
            h, target = hidden[part : part + rows], targets[part : part + rows, None]
            logits = (h @ weight.t()).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            loss += (log_z - logits.gather(1, target))[: max(0, n - part)].sum()
            p = logits.sub_(log_z).exp_()
            p.scatter_add_(1, target, torch.full_like(log_z, -1.0))
            p = p.to(hidden.dtype)
            d_hidden[part : part + rows] = p @ weight
            d_weight += p.t() @ h
        ctx.save_for_backward(d_hidden[:n], d_weight)
        return loss / n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients, computed in the forward pass, scaled."""
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0] / len(d_hidden)
        return d_hidden * scale, d_weight * scale, None, None


def training_loss(model: GPT2, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss over the targets that are not padding; under autocast in half precision."""
    # On CPUs, at these lengths, the plain attention is faster than the fused one.
    plain = inputs.device.type == "cpu"
    with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
        hidden = model.hidden(inputs)[targets != IGNORED]
    weight = model.wte.weight
    if torch.is_autocast_enabled(inputs.device.type):
        dtype = torch.get_autocast_dtype(inputs.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    loss = LinearCrossEntropy.apply(hidden, weight, targets[targets != IGNORED], 512)
    assert isinstance(loss, Tensor)
    return loss


def make_optimizers(model: GPT2, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings and vectors.

    Muon's update is scaled to the size of AdamW's, so that one learning rate serves both. It came
    with torch 2.9.
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


def lr_at(step: int, args: argparse.Namespace) -> float:
    """Warm-up, a plateau, and a linear descent to 0 over the last `--decay` of the steps.

    On the plateau `--steps` may still be changed: a resumed run then ends earlier or later.
    """
    left = (args.steps - step) / max(1, args.decay * args.steps)
    return args.lr * min(1.0, (step + 1) / max(1, args.warmup), left)


class Checkpoint(NamedTuple):
    """A file from which a run goes on as if nothing had happened, and what must not change.

    Everything random in training is drawn from (seed, epoch): step, weights and optimisers' state
    are all there is to keep.
    """

    path: Path
    fixed: dict[str, float]

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
            raise SystemExit(
                f"{self.path} is of a run with {state['fixed']}, this one has {self.fixed}: give"
                " the same options, or another --work"
            )
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        log.info("resumed %s at step %d", self.path, state["history"]["step"])
        return state["history"]


def train(
    model: GPT2, corpus: Corpus, validation: list[np.ndarray], args: argparse.Namespace
) -> dict[str, Any]:
    """Trains `model` in place, from `--work`'s checkpoint if there is one.

    Returns:
        The `step` reached, the `seconds` and `tokens` it took, and the `validation` losses by step.
    """
    device, end = model.wte.weight.device, len(model.wte.weight) - 1
    optimizers = make_optimizers(model, args.lr, args.weight_decay)
    options = ("seed", "batch_tokens", "lr", "weight_decay", "warmup")
    fixed = {name: getattr(args, name) for name in options} | {"texts": len(corpus.texts)}
    checkpoint = Checkpoint(args.work / "checkpoint.pt", fixed)
    history = checkpoint.load(model, optimizers)
    last = min(args.steps, args.stop_at or args.steps)
    chunks = batches_from(corpus, args.batch_tokens, args.seed, history["step"])
    progress = tqdm(total=args.steps, initial=history["step"], unit="step", disable=args.quiet)
    started = time.perf_counter()
    model.train()
    while history["step"] < last:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = lr_at(history["step"], args)
        inputs, targets = collate(next(chunks), end, rows=16)
        with autocast(device, args.precision):
            loss = training_loss(model, inputs.to(device), targets.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        history["step"] += 1
        history["tokens"] += int((targets != IGNORED).sum())
        progress.update()
        if history["step"] % args.save_every == 0 or history["step"] == last:
            history["seconds"] += time.perf_counter() - started
            nats, tokens = nats_and_tokens(model, validation, args.precision)
            history["validation"][history["step"]] = nats / tokens
            progress.set_postfix(loss=f"{loss.item():.3f}", validation=f"{nats / tokens:.3f}")
            log.info("step %d: validation %.4f", history["step"], nats / tokens)
            checkpoint.save(model, optimizers, history)
            started = time.perf_counter()
    progress.close()
    model.eval()
    return history


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision for what tolerates it; parameters and optimiser state stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


# 2. Report ---------------------------------------------------------------------------------------


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


def perplexities(model: GPT2, vocabulary: Vocabulary, sentences: Sequence[str]) -> dict[str, float]:
    """How well the model predicts the sentences, per word, GPT-2 token and token of its own."""
    texts = [vocabulary.encode(text) for text in sentences]
    nats, tokens = nats_and_tokens(model, texts)
    gpt2_tokens = sum(len(ids) + 1 for ids in encode_gpt2(sentences))
    words = sum(len(text.split()) for text in sentences)
    return {
        "sentences": len(sentences),
        "words": words,
        "nats_per_token": nats / tokens,
        "perplexity_per_token": float(np.exp(nats / tokens)),
        "perplexity_per_gpt2_token": float(np.exp(nats / gpt2_tokens)),
        "perplexity_per_word": float(np.exp(nats / words)),
    }


def sample_texts(
    model: GPT2, vocabulary: Vocabulary, n: int, seed: int, prompt: str = "", new_tokens: int = 30
) -> tuple[list[str], np.ndarray]:
    """`n` texts at temperature 1, and the tokens of each (`new_tokens` + 1: it did not end)."""
    device = model.wte.weight.device
    start = [vocabulary.end_index, *(vocabulary.encode(prompt) if prompt else [])]
    generator = torch.Generator(device).manual_seed(seed)
    new = model.generate(
        torch.tensor([start] * n, device=device), new_tokens, generator=generator
    ).cpu()
    ended = new == vocabulary.end_index
    lengths = np.where(ended.any(1), ended.int().argmax(1) + 1, new_tokens + 1)
    return [prompt + vocabulary.decode(row) for row in new.tolist()], lengths


def recitation(samples: Sequence[str], reviews: Iterable[str], n: int = 8) -> dict[str, Any]:
    """How many of the samples share `n` words in a row with the reviews, whatever their case."""
    split = [text.lower().split() for text in samples]
    grams: dict[str, set[int]] = {}
    for index, words in enumerate(split):
        for i in range(len(words) - n + 1):
            grams.setdefault(" ".join(words[i : i + n]), set()).add(index)
    longest: dict[int, int] = {}  # the longest shared run of each sample that shares one
    for review in reviews:
        words = BREAK.sub(" ", review).lower().split()
        run: dict[int, int] = {}  # the shared run that ends here, by sample
        for i in range(len(words) - n + 1):
            here = grams.get(" ".join(words[i : i + n]), ())
            run = {index: run.get(index, n - 1) + 1 for index in here}
            for index, length in run.items():
                longest[index] = max(length, longest.get(index, 0))
    return {
        "samples": len(samples),
        f"share_with_{n}_words": sum(len(words) >= n for words in split) / max(1, len(samples)),
        f"share_sharing_{n}_words": len(longest) / max(1, len(samples)),
        "longest_shared_runs": sorted(longest.values())[:-6:-1],
    }


def load_other(path: Path) -> tuple[GPT2, Vocabulary]:
    """A model to compare with; config.json or token_ids.json in its folder names its rows."""
    model = GPT2.from_pretrained(path)
    ids = model.token_ids or json.loads((path / "token_ids.json").read_text("utf-8"))
    return model, Vocabulary(ids)


def make_report(
    model: GPT2,
    vocabulary: Vocabulary,
    reviews: list[str],
    test: list[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Perplexity on held-out sentences, samples, ends and recitation."""
    trained = set(clean_sentences(reviews))
    held_out = [s for s in clean_sentences(test) if s not in trained]
    random.Random(args.seed).shuffle(held_out)
    gpt2_ids = encode_gpt2(held_out)
    known = set(vocabulary.token_ids.tolist())

    def within(ids: set[int]) -> list[str]:
        inside = (s for s, t in zip(held_out, gpt2_ids, strict=True) if ids.issuperset(t))
        return list(itertools.islice(inside, args.report_sentences))

    people = held_out[: args.report_sentences]
    report: dict[str, Any] = {
        "all_sentences": perplexities(model, vocabulary, people),
        "within_vocabulary": perplexities(model, vocabulary, within(known)),
    }
    if args.compare:
        other, others = load_other(args.compare)
        both = sorted(known & set(others.token_ids.tolist()))  # end-of-text comes last
        restricted, shared = model.restrict(both), within(set(both))
        report["within_both_vocabularies"] = {
            "this": perplexities(model, vocabulary, shared),
            "this, restricted to both": perplexities(restricted, Vocabulary(both), shared),
            "compared": perplexities(other, others, shared),
        }
    small = Vocabulary.load("small")
    models = {"reviews": (model, vocabulary)}
    if known.issuperset(small.token_ids.tolist()):
        models["small"] = (model.restrict(small.token_ids.tolist()), small)
    for name, (gpt2, tokens) in models.items():
        texts, lengths = sample_texts(gpt2, tokens, args.report_samples, args.seed)
        report[f"samples_{name}"] = {
            "ended_within_20": float((lengths <= 20).mean()),
            "ended_within_30": float((lengths <= 30).mean()),
            "mean_length": float(lengths.mean()),
            "distinct": len(set(texts)) / len(texts),
            "examples": texts[:20],
        }
        report[f"recitation_{name}"] = recitation(texts, reviews)
    report["recitation_people"] = recitation(people[: args.report_samples], reviews)
    report["prompted"] = {
        prompt: sample_texts(model, vocabulary, 4, args.seed, prompt)[0] for prompt in PROMPTS
    }
    return report


# 3. Program --------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data", type=Path, help="folder with imdb_{train,unsup,test}.jsonl[.xz]; default: the hub"
    )
    add("--work", type=Path, default=Path("runs/pretrain"), help="checkpoint, model and report")
    add("--steps", type=int, default=2400, help="optimiser steps in all (2400)")
    add("--stop-at", type=int, help="end this session at that step; the same command resumes")
    add("--batch-tokens", type=int, default=4096, help="positions in a batch (4096)")
    add("--lr", type=float, default=5e-3, help="peak learning rate (0.005)")
    add("--warmup", type=int, default=150, help="steps to reach it (150)")
    add("--decay", type=float, default=0.5, help="share of the steps in which it falls to 0 (0.5)")
    add("--weight-decay", type=float, default=0.05, help="of matrices and embeddings (0.05)")
    add("--vocab-size", type=int, default=8192, help="GPT-2 tokens, end-of-text included (8192)")
    add("--n-layer", type=int, default=4)
    add("--n-head", type=int, default=4)
    add("--n-embd", type=int, default=256)
    add("--n-positions", type=int, default=64, help="longest text in tokens (64)")
    add("--seed", type=int, default=0, help="of weights, data order and samples (0)")
    add("--device", default="auto", help="cpu, cuda, … (auto: cuda where there is one)")
    add("--precision", choices=("bf16", "fp32"), default="bf16", help="of training (bf16 autocast)")
    add("--save-every", type=int, default=100, help="steps between checkpoints (100)")
    add("--compare", type=Path, help="another GPT-2's folder, for the report")
    add("--evaluate", metavar="MODEL", help="only the report, on a folder or 'reviews'")
    add("--report-sentences", type=int, default=5000, help="held-out sentences at most (5000)")
    add("--report-samples", type=int, default=500, help="texts to sample (500)")
    add("--smoke", action="store_true", help="a tiny model on made-up text, in seconds")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.smoke:
        small = {"vocab_size": 768, "n_layer": 1, "n_embd": 32, "batch_tokens": 512, "warmup": 5}
        small |= {"steps": 40, "save_every": 10, "report_sentences": 50, "report_samples": 20}
        vars(args).update(small)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        reviews, test = made_up_reviews(200, seed=1), made_up_reviews(50, seed=2)
    else:
        reviews = read_reviews(args.data, "train") + read_reviews(args.data, "unsup")
        test = read_reviews(args.data, "test")
    report: dict[str, Any] = {"options": {k: str(v) for k, v in sorted(vars(args).items())}}
    if args.evaluate:
        model = GPT2.from_pretrained(args.evaluate).to(args.device)
        assert model.token_ids is not None
        vocabulary = Vocabulary(model.token_ids)
    else:
        model, vocabulary, report["training"] = pretrain(reviews, args)
        if args.stop_at and args.stop_at < args.steps:
            return report
    report |= make_report(model, vocabulary, reviews, test, args)
    (args.work / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    log.info("%s", json.dumps({k: v for k, v in report.items() if k != "options"}, indent=1))
    return report


def pretrain(
    reviews: list[str], args: argparse.Namespace
) -> tuple[GPT2, Vocabulary, dict[str, Any]]:
    """From reviews to `--work`'s config.json, model.safetensors and vocabulary.json."""
    held = max(1, len(reviews) // 200)  # of the training reviews, to watch the training by
    sentences, pairs = clean_sentences(reviews[:-held]), sentence_pairs(reviews[:-held:8])
    seen = set(sentences)
    unseen = [s for s in clean_sentences(reviews[-held:]) if s not in seen]
    gpt2_ids = encode_gpt2(sentences)
    counts = count_tokens(gpt2_ids) + count_tokens(encode_gpt2([*map(as_small, sentences[::8])]))
    vocabulary = choose_vocabulary(counts, args.vocab_size, token_ids("small") - {END_OF_TEXT_ID})
    args.work.joinpath("vocabulary.json").write_text(
        json.dumps(vocabulary.token_ids.tolist()) + "\n", "utf-8"
    )
    corpus = make_corpus(sentences, gpt2_ids, pairs, vocabulary, args.n_positions)
    tokens = sum(n * (len(t) + 1) for t, n in zip(corpus.texts, corpus.repeats, strict=True))
    log.info(
        "%d sentences, %d texts, %d tokens an epoch", len(sentences), len(corpus.texts), tokens
    )
    validation = [vocabulary.encode(s) for s in unseen[:2000]]

    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=args.n_positions,
        n_embd=args.n_embd,
        n_layer=args.n_layer,
        n_head=args.n_head,
        token_ids=tuple(vocabulary.token_ids.tolist()),
    )
    model = GPT2(config).to(args.device)
    history = train(model, corpus, validation, args)
    model.save_pretrained(args.work / "model", dtype=torch.float16)
    # The report is about the numbers as shipped.
    shipped = GPT2.from_pretrained(args.work / "model").to(args.device)
    return shipped, vocabulary, history | {"epoch_tokens": int(tokens)}


if __name__ == "__main__":
    main()
