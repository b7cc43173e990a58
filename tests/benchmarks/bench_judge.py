"""What judging costs, beside writing the texts: the bundled GPT-2's own, of at most 20 tokens.

python tests/benchmarks/bench_judge.py [--model DIR] [--batches 64 1024] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
import transformers
from common import interleave, report, setting

from agents import GPT2
from text_sentiment_env import Vocabulary, load_sentiment_model
from text_sentiment_env.sentiment import VaderSentiment


def main() -> None:
    """Runs and prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="also a Hugging Face classifier: an id or a directory")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    gpt2 = GPT2.from_pretrained("reviews").to(args.device)
    vocabulary, end = Vocabulary(gpt2.token_ids), gpt2.end_index
    vader = VaderSentiment()

    def forgetful_vader(texts: list[str]) -> np.ndarray:
        VaderSentiment._score.cache_clear()
        return vader(texts)

    judges = {
        "bundled": load_sentiment_model("bundled", device=args.device),
        "vader": forgetful_vader,
        "vader, read before": vader,
    }
    if args.model:
        for dtype in ("float32", "bfloat16"):
            options = {"device": args.device, "dtype": dtype}
            judges[f"{args.model.rstrip('/').split('/')[-1]}, {dtype}"] = load_sentiment_model(
                args.model, **options
            )
    rows = []
    for batch in args.batches:
        start = torch.full((batch, 1), end, device=args.device)

        def write(start: torch.Tensor = start) -> torch.Tensor:
            with torch.inference_mode():
                return gpt2.generate(start, args.max_tokens)

        torch.manual_seed(0)
        ids = write()
        texts = [vocabulary.decode(row) for row in ids.tolist()]
        contenders = {"writing them": write} | {
            name: lambda judge=judge, texts=texts: judge(texts) for name, judge in judges.items()
        }
        seconds = {n: statistics.median(s) for n, s in interleave(contenders, args.rounds).items()}
        for name, spent in seconds.items():
            share = f"{spent / seconds['writing them']:.0%}"
            rows.append(
                [f"{batch:,}", name, f"{1e3 * spent:.1f}", f"{1e3 * spent / batch:.3f}", share]
            )
        length = (ids != end).sum().item() / batch
        print(f"{batch:,} texts of {length:.1f} tokens on average, such as {texts[0]!r}")
    columns = ["texts", "judge", "ms", "ms a text", "of the time of writing"]
    report(
        f"Judging texts of at most {args.max_tokens} tokens, {setting(args.device)}", columns, rows
    )


if __name__ == "__main__":
    main()
