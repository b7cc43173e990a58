"""Generation beside transformers' `generate`: the same random GPT-2, new tokens, sampling, KV cache.

python tests/benchmarks/bench_generate.py [--sizes tiny 124M] [--batches 1 16 64] [--dtype fp32|bf16]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from common import Machine, interleave, ratio, report, setting
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
    parser.add_argument("--cuda-graphs", action="store_true", help="replays CUDA graphs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    machine = Machine.measured(args.device, dtype)
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
                    model.generate(ids, args.new_tokens, end_index=-1, cuda_graph=args.cuda_graphs)

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
            spent = statistics.median(seconds["ours"]) / args.new_tokens
            floor = machine.floor(ours, batch)
            rows.append(
                [
                    size,
                    args.dtype,
                    str(batch),
                    f"{batch / spent:,.0f}",
                    f"{floor / spent:.0%}",
                    f"{median:.2f} ({least:.2f} to {most:.2f})",
                ]
            )
    columns = [
        "model",
        "dtype",
        "rows",
        "our tokens/s",
        "of the floor",
        "times faster (least to largest)",
    ]
    title = f"Generating {args.new_tokens} tokens, {setting(args.device)}, {machine.flops / 1e9:,.0f} GFLOP/s"
    report(title, columns, rows)


if __name__ == "__main__":
    main()
