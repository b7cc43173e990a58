"""Is the GPT-2 in `agents` the one in transformers? Loads both from the same files and compares.

    python examples/verify_gpt2.py                       # a small random model, made here
    python examples/verify_gpt2.py --model gpt2 --layers # the 124M model, stage by stage

Exit status: 1 if they differ by more than --tolerance, 2 if the model can't be loaded.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from agents import GPT2, cli
from text_sentiment_env.vocabulary import gpt2_encoding

TEXT = (
    "The acting in this film is superb, and yet I left the cinema disappointed: a clever plot,"
    " told without any sense of timing, isn't enough to carry two and a half hours."
)


class Stage(NamedTuple):
    """One point of the computation, compared."""

    name: str
    difference: float
    largest: float  # of transformers' absolute values, to judge the difference by
    limit: float

    @property
    def equal(self) -> bool:
        """Whether the difference is within the limit."""
        return self.difference <= self.limit


@dataclass
class Args:
    """All flags."""

    model: str | None = None
    """a directory, a model of the hub or 'reviews'; default: a random one"""
    layers: bool = False
    """print every stage's difference"""
    dtype: Literal["fp32", "fp64"] = "fp32"
    """precision of both models"""
    seed: int = 0
    """seed of random weights and tokens"""
    tolerance: float = 1e-3
    """largest difference of the logits that passes; inside the network, where values reach thousands,
    it is relative to the largest value if that is above 1"""


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, argv, __doc__)
    if not 0 <= args.tolerance < math.inf:
        raise ValueError(f"--tolerance {args.tolerance}: must be a finite number >= 0")
    dtype = {"fp32": torch.float32, "fp64": torch.float64}[args.dtype]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = load(args.model or make_model(Path(folder), args.seed), dtype)
    ids = make_ids(ours, args.seed)
    count = sum(parameter.numel() for parameter in ours.parameters())
    print(
        f"{args.model or 'a random GPT-2'}: {count:,} parameters, compared in {args.dtype} on"
        f" {ids.shape[0]} texts of {ids.shape[1]} tokens"
    )
    stages = compare(ours, theirs, ids, args.tolerance)
    if args.layers:
        Console().print(table(stages))
    print(f"largest difference of the logits: {stages[-1].difference:.2g}")
    first = next((stage.name for stage in stages if not stage.equal), None)
    if first is None:
        return 0
    print(f"first stage that differs: {first}{'' if args.layers else ' (see --layers)'}")
    return 1


def make_model(folder: Path, seed: int) -> str:
    """Saves a small GPT-2 of transformers with random weights, for machines without the hub."""
    config = transformers.GPT2Config(n_positions=64, n_embd=48, n_layer=3, n_head=4)
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():  # fresh biases are 0 and fresh logits small: they would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return str(folder)


def load(model: str, dtype: torch.dtype) -> tuple[transformers.GPT2LMHeadModel, GPT2]:
    """The model as transformers and as this package read it."""
    ours = GPT2.from_pretrained(model, dtype=dtype)  # first, for it says clearly what is wrong
    if model == "reviews":
        model = str(resources.files("agents") / "data" / "reviews")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(model, attn_implementation="eager")
    theirs = theirs.double() if dtype == torch.float64 else theirs.float()
    return theirs.eval(), ours


def make_ids(gpt2: GPT2, seed: int) -> Tensor:
    """Two rows of tokens (2, T): random ones, and a text as far as it is in the vocabulary."""
    config = gpt2.config
    generator = torch.Generator().manual_seed(seed)
    shape = (2, min(config.n_positions, 64))
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    text = torch.tensor(gpt2_encoding().encode_ordinary(TEXT))[: shape[1]]
    if config.token_ids is None and int(text.max()) < config.vocab_size:
        ids[0, : len(text)] = text
    return ids


def compare(
    ours: GPT2, theirs: transformers.GPT2LMHeadModel, ids: Tensor, tolerance: float
) -> list[Stage]:
    """All stages in the order of computation, the logits last."""
    stages = [compare_weights(ours, theirs)]
    mine, wanted = record(ours, ours, ids), record(theirs, theirs.transformer, ids)
    for name, want in wanted.items():
        largest = want.abs().max().item()
        limit = tolerance * (1 if name == "logits" else max(1, largest))
        stages.append(Stage(name, difference(mine[name], want), largest, limit))
    return stages


def compare_weights(ours: GPT2, theirs: transformers.GPT2LMHeadModel) -> Stage:
    """All weights, named for the one that differs most if any does: not a bit of them should."""
    mine = dict(ours.named_parameters())
    largest = max(weight.abs().max().item() for weight in theirs.transformer.parameters())
    worst = Stage("weights", 0.0, largest, 0.0)
    for name, weight in theirs.transformer.named_parameters():
        module = theirs.transformer.get_submodule(name.rpartition(".")[0])
        # Conv1D keeps (in, out) where nn.Linear keeps (out, in).
        want = weight.T if isinstance(module, Conv1D) and weight.ndim == 2 else weight
        apart = difference(mine[name], want)
        if apart > worst.difference:
            worst = Stage(name, apart, largest, 0.0)
    return worst


@torch.no_grad()
def record(model: nn.Module, body: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What every stage of one forward pass puts out; `body` holds the modules `h` and `ln_f`."""
    stages: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        stages[name] = output[0] if isinstance(output, tuple) else output

    parts = [
        f"h.{i}.{part}"
        for i, _ in body.get_submodule("h").named_children()
        for part in ("ln_1", "attn", "ln_2", "mlp")
    ]
    handles = [
        body.get_submodule("h.0.ln_1").register_forward_pre_hook(
            lambda _, args: keep("embeddings", args)  # all that came before the first block
        ),
        *(
            body.get_submodule(name).register_forward_hook(
                lambda _module, _args, output, name=name: keep(name, output)
            )
            for name in [*parts, "ln_f"]
        ),
    ]
    try:
        output = model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return stages | {"logits": output if isinstance(output, Tensor) else output.logits}


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where there is none to be had."""
    apart = (a - b).abs().max().item() if a.shape == b.shape else math.inf
    return math.inf if math.isnan(apart) else apart


def table(stages: Sequence[Stage]) -> Table:
    grid = Table("stage", "", title="ours against transformers'")
    for heading in ("largest difference", "largest value"):
        grid.add_column(heading, justify="right")
    for stage in stages:
        mark, style = ("=", None) if stage.equal else ("differs", "red")
        grid.add_row(
            stage.name, mark, f"{stage.difference:.2g}", f"{stage.largest:.3g}", style=style
        )
    return grid


if __name__ == "__main__":
    sys.exit(main())
