"""The command line of pretrain.py: the string below a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch


@dataclass
class Args:
    """Train a small GPT-2 on sentences of film reviews, or report on one."""

    data: Path | None = None
    """folder with imdb_{train,unsup,test}.jsonl[.xz]; none: Hugging Face's stanfordnlp/imdb"""
    work: Path = Path("runs/pretrain")
    """folder for the checkpoint, the model and the report"""
    broad_steps: int = 2600
    """first stage: beginnings of all clean sentences, as far as their words are known"""
    plain_steps: int = 1400
    """last stage: short sentences of known words alone"""
    temperature: float = 0.9
    """divides the shipped model's logits: below 1, samples come less often from the tail"""
    stop_at: int | None = None
    """end this session at that step; the same command resumes"""
    batch_tokens: int = 3072
    """positions in a batch"""
    lr: float = 5e-3
    """peak learning rate"""
    warmup: int = 150
    """steps to reach it"""
    decay: float = 0.36
    """share of all steps in which it falls to 0"""
    weight_decay: float = 0.05
    """of matrices and embeddings"""
    vocab_size: int = 5120
    """GPT-2 tokens, end-of-text included"""
    least_count: int = 12
    """a word is written if the plain sentences hold it that often"""
    longest: int = 18
    """tokens of a plain sentence at most"""
    n_layer: int = 5
    """blocks"""
    n_head: int = 4
    """attention heads"""
    n_embd: int = 256
    """channels"""
    n_positions: int = 64
    """longest text in tokens"""
    seed: int = 0
    """of weights, data order and samples"""
    device: str = "auto"
    """cpu, cuda, …; auto: cuda where there is one"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """of training, by autocast"""
    save_every: int = 100
    """steps between checkpoints"""
    evaluate: str | None = None
    """only report: on a model's folder, or "reviews" """
    compare: Path | None = None
    """folder of another GPT-2: it predicts the same sentences, and reads the samples"""
    reader: str | None = None
    """language model of transformers that reads the samples: id, folder or .gguf file"""
    reader_sentences: int = 0
    """of the training reviews, on which the reader is fine-tuned before it reads"""
    report_sentences: int = 3000
    """held-out sentences to read at most"""
    report_samples: int = 2000
    """texts to sample"""
    smoke: bool = False
    """other defaults: a tiny model on made-up text, in seconds"""
    quiet: bool = False
    """no progress bar"""

    def __post_init__(self) -> None:
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"


SMOKE = Args(
    broad_steps=20,
    plain_steps=20,
    batch_tokens=512,
    warmup=5,
    vocab_size=768,
    n_layer=1,
    n_embd=32,
    save_every=10,
    report_sentences=50,
    report_samples=20,
    smoke=True,
)
