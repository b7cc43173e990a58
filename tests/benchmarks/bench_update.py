"""One whole update (rollout, judge, reference, loss, step) beside a hand-written Hugging Face loop.

The rival is what a careful user writes with transformers alone: `generate` with a KV cache, one forward of policy
and reference over the batch, the same reward, leave-one-out baseline, k1 KL in the reward, clipping and AdamW.

python tests/benchmarks/bench_update.py [--sizes tiny 124M] [--num-envs 64] [--max-tokens 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import gymnasium as gym
import numpy as np
import torch
from common import interleave, ratio, report, setting
from transformers import GPT2LMHeadModel

from agents import GPT2, REINFORCE, GPT2Config, GPT2Policy
from text_sentiment_env import Vocabulary

SIZES = {
    "tiny": (
        GPT2Config(vocab_size=8192, n_positions=64, n_embd=256, n_layer=4, n_head=4),
        "reviews",
    ),
    "124M": (GPT2Config(), "gpt2"),
}
KL, LEARNING_RATE = 0.05, 1e-5


def free(texts: list[str]) -> np.ndarray:
    """A judge that costs nothing, and depends on the text."""
    return np.array([(len(text) % 7) / 7 for text in texts])


class HuggingFaceLoop:
    """REINFORCE by hand on transformers' GPT-2, for texts of at most `max_tokens` tokens."""

    def __init__(self, folder: str, vocabulary: Vocabulary, rows: int, max_tokens: int) -> None:
        self.policy = GPT2LMHeadModel.from_pretrained(folder)
        self.reference = GPT2LMHeadModel.from_pretrained(folder).eval()
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=LEARNING_RATE, weight_decay=0
        )
        self.vocabulary, self.rows, self.max_tokens = vocabulary, rows, max_tokens
        self.end = vocabulary.end_index

    def log_probs(self, model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
        """Log-probability of every written token, (B, T)."""
        logits = model(ids).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    def update(self) -> None:
        """One update."""
        start = torch.full((self.rows, 1), self.end)
        self.policy.eval()
        with torch.no_grad():
            ids = self.policy.generate(
                start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=self.max_tokens,
                do_sample=True,
                top_k=0,
                eos_token_id=self.end,
                pad_token_id=self.end,
            )
        written = ids[:, 1:]
        ended = (written == self.end).cumsum(1)
        mask = (ended - (written == self.end).long()) == 0  # up to and with the first end
        texts = [self.vocabulary.decode(r[m].tolist()) for r, m in zip(written, mask, strict=True)]
        rewards = torch.as_tensor(free(texts), dtype=torch.float32)
        log_probs = self.log_probs(self.policy, ids) * mask
        with torch.no_grad():
            ratio = (log_probs - self.log_probs(self.reference, ids)) * mask
            paid = -KL * ratio
            paid[torch.arange(self.rows), mask.sum(1) - 1] += rewards
            to_go = paid.flip(1).cumsum(1).flip(1)
            total = to_go[:, 0]
            baseline = (total.sum() - total) / (self.rows - 1)
            advantages = (to_go - baseline[:, None]) * mask
        loss = -(advantages * log_probs).sum() / self.rows
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()


def main() -> None:
    """Runs and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        config, name = SIZES[size]
        envs = gym.make_vec(
            "text_sentiment_env:TextSentiment-v0",
            num_envs=args.num_envs,
            vocabulary=name,
            max_tokens=args.max_tokens,
            sentiment_model=free,
            autoreset_mode="SameStep",
        )
        gpt2 = GPT2(config)
        model = REINFORCE(
            GPT2Policy,
            envs,
            pretrained=GPT2(
                GPT2Config(
                    **{**vars(config), "token_ids": tuple(envs.vocabulary.token_ids.tolist())}
                )
            ),
            kl_coef=KL,
            learning_rate=LEARNING_RATE,
            device="cpu",
            precision="fp32",
        )
        with tempfile.TemporaryDirectory() as folder:
            gpt2.save_pretrained(folder)
            loop = HuggingFaceLoop(folder, envs.vocabulary, args.num_envs, args.max_tokens)
        model.learn(1)

        def we(model: REINFORCE = model) -> None:
            model.learn(10**9, total_updates=1, reset_num_timesteps=False)

        seconds = interleave({"ours": we, "by hand": loop.update}, args.rounds)
        median, least, most = ratio(seconds["by hand"], seconds["ours"])
        rows.append(
            [
                size,
                f"{statistics.median(seconds['ours']):.2f}",
                f"{statistics.median(seconds['by hand']):.2f}",
                f"{median:.2f} ({least:.2f} to {most:.2f})",
            ]
        )
    columns = ["model", "our seconds", "by hand", "our share of its time (least to largest)"]
    report(f"One update of {args.num_envs} × {args.max_tokens} tokens, {setting()}", columns, rows)


if __name__ == "__main__":
    main()
