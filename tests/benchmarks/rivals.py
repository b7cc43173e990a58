"""Others' ways to train, for `bench_update.py` and `bench_quality.py`: by hand with transformers, and with TRL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import now, timed
from transformers import GPT2LMHeadModel

from text_sentiment_env import Vocabulary

KL, LEARNING_RATE = 0.05, 1e-5
RewardFunction = Callable[..., list[float]]  # of prompts, completions, completion_ids, as TRL's


def free(texts: list[str]) -> np.ndarray:
    """A judge that costs nothing, and depends on the text."""
    return np.array([(len(text) % 7) / 7 for text in texts])


def free_reward(completions: list[str], **_: Any) -> list[float]:
    """That judge, as TRL wants it."""
    return free(completions).tolist()


class HuggingFaceLoop:
    """REINFORCE by hand, as a careful user of transformers writes it.

    `generate` with its KV cache; one pass of policy and of reference over the batch, which gives logits only where
    a token was written; k1 KL in the reward, leave-one-out baseline, clipping, fused AdamW; autocast for bf16.
    """

    def __init__(
        self,
        folder: str,
        vocabulary: Vocabulary,
        rows: int,
        max_tokens: int,
        device: str,
        half: bool,
        reward: RewardFunction = free_reward,
        kl_coef: float = KL,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.policy = GPT2LMHeadModel.from_pretrained(folder).to(device).eval()
        self.reference = GPT2LMHeadModel.from_pretrained(folder).to(device).eval()
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=learning_rate, weight_decay=0, fused=True
        )
        self.vocabulary, self.max_tokens = vocabulary, max_tokens
        self.reward, self.kl_coef = reward, kl_coef
        self.start = torch.full((rows, 1), vocabulary.end_index, device=device)
        self.device, self.half = torch.device(device).type, half
        self.tokens = 0  # written so far

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.half)

    def log_probs(self, model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
        """Log-probability of every written token, (B, T)."""
        with self.autocast():
            logits = model(ids[:, :-1], use_cache=False).logits
        return logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    def write(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts with <|endoftext|> in front (B, 1 + T), and which tokens count (B, T)."""
        end = self.vocabulary.end_index
        with torch.no_grad(), self.autocast():
            ids = self.policy.generate(
                self.start,
                attention_mask=torch.ones_like(self.start),
                max_new_tokens=self.max_tokens,
                do_sample=True,
                top_k=0,
                eos_token_id=end,
                pad_token_id=end,
            )
        ended = ids[:, 1:] == end
        return ids, ended.cumsum(1) - ended.long() == 0  # up to and with the first end

    def learn(self, ids: torch.Tensor, mask: torch.Tensor, rewards: torch.Tensor) -> None:
        """One gradient step."""
        B = len(ids)
        log_probs = self.log_probs(self.policy, ids) * mask
        with torch.no_grad():
            paid = -self.kl_coef * (log_probs - self.log_probs(self.reference, ids)) * mask
            paid[torch.arange(B), mask.sum(1) - 1] += rewards
            to_go = paid.flip(1).cumsum(1).flip(1)
            total = to_go[:, 0]
            baseline = (total.sum() - total) / (B - 1)
            advantages = (to_go - baseline[:, None]) * mask
        loss = -(advantages * log_probs).sum() / B
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()

    def update(self) -> None:
        """One whole update."""
        ids, mask = self.write()
        written, kept = ids[:, 1:].tolist(), mask.sum(1).tolist()
        tokens = [row[:n] for row, n in zip(written, kept, strict=True)]
        texts = [self.vocabulary.decode(row) for row in tokens]
        self.tokens += sum(kept)
        rewards = self.reward(prompts=[""] * len(ids), completions=texts, completion_ids=tokens)
        self.learn(ids, mask, torch.tensor(rewards, device=ids.device))


def trl_trainer(
    folder: str,
    rows: int,
    max_tokens: int,
    steps: int,
    device: str,
    half: bool,
    callback: Any,
    reward: RewardFunction = free_reward,
    kl_coef: float = KL,
    learning_rate: float = LEARNING_RATE,
    lr_decay: str = "constant",
    seed: int = 0,
) -> Any:
    """TRL's RLOOTrainer: one generation of all rows, one step on all of them.

    Its defaults hold, but for what would slow it down: gradient checkpointing, logging, progress bars and files.

    Raises:
        ImportError: without trl.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback
    from trl import RLOOConfig, RLOOTrainer

    trainer = RLOOTrainer(
        # Loaded by us, so that it is float32 as ours is; the trainer loads its reference from the folder itself.
        model=GPT2LMHeadModel.from_pretrained(folder),
        reward_funcs=reward,
        # The tokenizer puts <|endoftext|> before each prompt.
        train_dataset=Dataset.from_dict({"prompt": [""] * steps}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[callback],
        args=RLOOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            num_iterations=1,
            num_generations=rows,
            max_completion_length=max_tokens,
            beta=kl_coef,
            learning_rate=learning_rate,
            lr_scheduler_type=lr_decay,
            seed=seed,
            bf16=half,
            use_cpu=torch.device(device).type == "cpu",
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def interleave_with_trl(
    folder: str,
    rows: int,
    max_tokens: int,
    device: str,
    half: bool,
    others: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
) -> tuple[dict[str, list[float]], float]:
    """Seconds of the updates of TRL's RLOOTrainer and, before each of them, of the others.

    Returns:
        Seconds as `common.interleave` gives them, and TRL's mean number of tokens a text.

    Raises:
        ImportError: without trl.
    """
    from transformers import TrainerCallback

    seconds: dict[str, list[float]] = {name: [] for name in [*others, "TRL"]}

    class Turns(TrainerCallback):
        """Lets the others run before each step of the trainer, and times that step."""

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            for name, run in others.items():
                seconds[name].append(timed(run))
            self.began = now()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            seconds["TRL"].append(now() - self.began)

    steps = warmup + rounds
    trainer = trl_trainer(folder, rows, max_tokens, steps, device, half, Turns())
    trainer.train()
    written = trainer.state.num_input_tokens_seen / (steps * rows) - 1  # less the prompt's
    return {name: spent[warmup:] for name, spent in seconds.items()}, written
