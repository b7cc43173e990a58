"""Generation beside transformers' `generate`: the same random GPT-2, new tokens, sampling, KV cache.

python tests/benchmarks/bench_generate.py [--sizes tiny 124M] [--batches 1 16 64] [--dtype fp32|bf16]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from common import interleave, ratio, report, setting
from transformers import GPT2LMHeadModel

from agents import GPT2, GPT2Config

SIZES = {
    "tiny": GPT2Config(vocab_size=4096, n_positions=64, n_embd=256, n_layer=4, n_head=4),
    "124M": GPT2Config(),
}


def main() -> None:
    """Runs and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    rows = []
    for size in args.sizes:
        ours = GPT2(SIZES[size]).eval()
        with tempfile.TemporaryDirectory() as folder:
            ours.save_pretrained(folder)
            theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=dtype)
        ours, theirs = ours.to(args.device, dtype), theirs.to(args.device).eval()
        for batch in args.batches:
            ids = torch.randint(SIZES[size].vocab_size, (batch, 1), device=args.device)

            def we(ids: torch.Tensor = ids, model: GPT2 = ours) -> None:
                with torch.inference_mode():
                    model.generate(ids, args.new_tokens, end_index=-1)

            def they(ids: torch.Tensor = ids, model: GPT2LMHeadModel = theirs) -> None:
                with torch.inference_mode():
                    model.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        min_new_tokens=args.new_tokens,
                        max_new_tokens=args.new_tokens,
                        do_sample=True,
                        top_k=0,
                        pad_token_id=0,
                    )

            seconds = interleave({"ours": we, "transformers": they}, args.rounds)
            median, least, most = ratio(seconds["ours"], seconds["transformers"])
            speed = batch * args.new_tokens / statistics.median(seconds["ours"])
            rows.append(
                [
                    size,
                    args.dtype,
                    str(batch),
                    f"{speed:,.0f}",
                    f"{median:.2f}",
                    f"{least:.2f} to {most:.2f}",
                ]
            )
    columns = ["model", "dtype", "rows", "our tokens/s", "times faster", "least to largest"]
    report(f"Generating {args.new_tokens} tokens, {setting()}", columns, rows)


if __name__ == "__main__":
    main()
