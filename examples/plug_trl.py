"""TRL's RLOO or GRPO trainer on the bundled GPT-2, with the environment's reward.

    pip install -e ".[plug]"
    python examples/plug_trl.py --updates 5                  # seconds an update on one CPU core
    python examples/plug_trl.py --trainer grpo --out runs/trl
    python examples/plug_trl.py --until 0.85                 # how long it takes to this sentiment

TRL writes the texts itself. The model is saved once with its tokenizer and loaded by transformers;
its token ids are the actions of the vocabulary "reviews". Each update is one step on one batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents import GPT2, cli
from text_sentiment_env import RewardFunction


@dataclass
class Args:
    """All flags."""

    trainer: Literal["rloo", "grpo"] = "rloo"
    """RLOOTrainer (KL in the reward) or GRPOTrainer (KL in the loss)"""
    updates: int = 80
    """gradient steps"""
    rows: int = 64
    """texts an update, one group"""
    prompts: tuple[str, ...] = ("",)
    """beginnings of texts; each update continues one of them"""
    max_tokens: int = 20
    """the most tokens of a text"""
    sentiment_model: str = "bundled"
    """the judge"""
    kl_coef: float = 0.03
    """weight of KL to the start model"""
    learning_rate: float = 7e-4
    """AdamW's, falling to 0"""
    until: float | None = None
    """end at the first update whose texts have this mean sentiment"""
    seed: int = 0
    """seed of everything random"""
    out: Path | None = None
    """folder for the trained model, its tokenizer included"""


def train(args: Args, folder: Path) -> list[dict[str, float]]:
    """Trains in `folder`; returns seconds, sentiment and reward of each update."""
    # Here, because --help needs none of them.
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    GPT2.from_pretrained("reviews").save_pretrained(folder)
    grpo, until = args.trainer == "grpo", args.until
    history: list[dict[str, float]] = []

    class Report(TrainerCallback):
        """Prints and keeps the measures of each update; ends the training at `--until`."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "sentiment" not in logs:
                return  # the summary at the end
            # Without a KL penalty, TRL measures no KL.
            names = (name for name in ("sentiment", "reward", "kl") if name in logs)
            measures = {name: float(logs[name]) for name in names}
            history.append({"seconds": time.perf_counter() - self.began} | measures)
            print(
                f"update {state.global_step:3d}", *(f"{k} {v:.3f}" for k, v in history[-1].items())
            )
            if until is not None and measures["sentiment"] >= until:
                control.should_training_stop = True

    trainer = (GRPOTrainer if grpo else RLOOTrainer)(
        # Loaded here, so that it is float32. The trainer loads its reference from the folder.
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=RewardFunction(
            vocabulary="reviews", max_tokens=args.max_tokens, sentiment_model=args.sentiment_model
        ),
        # The tokenizer puts <|endoftext|> before each prompt, so that it may be empty.
        train_dataset=Dataset.from_dict({"prompt": list(args.prompts)}),
        callbacks=[Report()],
        args=(GRPOConfig if grpo else RLOOConfig)(
            output_dir=str(folder),
            max_steps=args.updates,
            per_device_train_batch_size=args.rows,
            gradient_accumulation_steps=1,
            num_generations=args.rows,
            max_completion_length=args.max_tokens,
            beta=args.kl_coef,
            learning_rate=args.learning_rate,
            logging_steps=1,
            seed=args.seed,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if args.out is not None:
        trainer.save_model(str(args.out))
    return history


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Trains and prints the last update's measures; returns those of all updates."""
    args = cli.parse(Args, argv, __doc__)
    cli.positive(args, "updates", "rows", "max_tokens")
    with tempfile.TemporaryDirectory() as folder:
        history = train(args, Path(folder))
    end = history[-1]
    print(f"{args.trainer}: sentiment {end['sentiment']:+.3f} after {end['seconds']:.1f} s")
    return history


if __name__ == "__main__":
    main()
