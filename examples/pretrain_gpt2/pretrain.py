"""Trains the bundled GPT-2, `GPT2.from_pretrained("reviews")`, on sentences of film reviews.

From the Large Movie Review Dataset (Maas et al. 2011) to the shipped files: clean sentences, a
vocabulary of whole words that can still encode any text, two stages of training, and a report on
held-out reviews. An interrupted run continues where it stopped when the same command is given
again, with the very numbers it would have had.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from pretrain_options import SMOKE, Args
from review_batches import Corpus, known_words, make_corpus, small_corpus
from review_report import Reader, make_report
from review_texts import (
    clauses,
    clean_sentences,
    made_up_reviews,
    passages,
    read_reviews,
)
from review_training import Stage, run_stages
from review_vocabulary import (
    choose_vocabulary,
    count_tokens,
    encode_gpt2,
    plain_length,
    token_ids,
)

from agents import cli
from agents.gpt2 import GPT2, GPT2Config
from text_sentiment_env.vocabulary import END_OF_TEXT_ID, Vocabulary

log = logging.getLogger("pretrain_gpt2")


class TrainingTexts(NamedTuple):
    """What `prepare` makes of the reviews."""

    vocabulary: Vocabulary
    known: set[int]  # the GPT-2 tokens that are written; the rest only completes the vocabulary
    broad: Corpus  # for the first stage
    plain: Corpus  # for the last


def prepare(reviews: Sequence[str], args: Args) -> TrainingTexts:
    """The vocabulary, and the corpora of the two stages."""
    sentences = clean_sentences(reviews)
    gpt2_ids = encode_gpt2(sentences)
    parts = list(dict.fromkeys(c for s in sentences for c in clauses(s)))
    short = {
        text: ids
        for text, ids in [*zip(sentences, gpt2_ids, strict=True),
                          *zip(parts, encode_gpt2(parts), strict=True)]
        if len(ids) <= args.longest and plain_length(ids) == len(ids)
    }  # fmt: skip
    small = token_ids("small") - {END_OF_TEXT_ID}
    vocabulary = choose_vocabulary(count_tokens(short.values()), args.vocab_size, small)
    known = known_words(list(short.values()), vocabulary, args.least_count)
    short = {text: ids for text, ids in short.items() if plain_length(ids, known) == len(ids)}

    plain = make_corpus(list(short.values()), vocabulary, whole=True)
    plain += small_corpus(list(short), known, vocabulary)
    several = [
        ids
        for ids in encode_gpt2(passages(reviews))
        if args.longest < len(ids) < args.n_positions and plain_length(ids, known) == len(ids)
    ]
    plain += make_corpus(several, vocabulary, whole=True)
    beginnings = [
        ids[:end]
        for text, ids in zip(sentences, gpt2_ids, strict=True)
        if text not in short and (end := min(plain_length(ids, known), args.longest + 6)) >= 4
    ]
    broad = plain + make_corpus(beginnings, vocabulary, whole=False)
    log.info(
        "%d sentences, %d clauses; %d short plain ones of %d words and signs, %d passages,"
        " %d beginnings; tokens an epoch: plain %d, broad %d",
        len(sentences), len(parts), len(short), len(known), len(several),
        len(beginnings), plain.tokens(), broad.tokens(),
    )  # fmt: skip
    return TrainingTexts(vocabulary, known, broad, plain)


@torch.no_grad()
def divide_logits(model: GPT2, temperature: float) -> None:
    """Changes the model so that a sample of it is one of the old model at `temperature`.

    The head is linear and has no bias, so the last layer norm takes the factor.
    """
    model.ln_f.weight.div_(temperature)
    model.ln_f.bias.div_(temperature)


def pretrain(reviews: list[str], args: Args) -> dict[str, Any]:
    """From reviews to `--work`'s config.json, model.safetensors and vocabulary.json.

    Returns:
        What `train` returns.
    """
    held = max(1, len(reviews) // 200)  # of the training reviews, to watch the training by
    texts = prepare(reviews[:-held], args)
    vocabulary = texts.vocabulary
    watched = [
        vocabulary.encode(text)
        for text, ids in _encoded(clean_sentences(reviews[-held:]))
        if len(ids) <= args.longest and plain_length(ids, texts.known) == len(ids)
    ]
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
    stages = [
        Stage(args.broad_steps, texts.broad),
        Stage(args.plain_steps, texts.plain),
    ]
    history = run_stages(model, stages, watched[:2000], args)
    (args.work / "vocabulary.json").write_text(
        json.dumps(vocabulary.token_ids.tolist()) + "\n", "utf-8"
    )
    divide_logits(model, args.temperature)
    model.save_pretrained(args.work / "model", dtype=torch.float16)
    return history


def _encoded(texts: list[str]) -> list[tuple[str, list[int]]]:
    return list(zip(texts, encode_gpt2(texts), strict=True))


def check(args: Args) -> None:
    """Refuses what would otherwise be noticed after the training, or not at all.

    Raises:
        ValueError: naming the flag, its value and what it must be.
    """
    cli.positive(args, "save_every", "batch_tokens", "stop_at", "vocab_size", "least_count")
    cli.positive(args, "n_layer", "n_head", "n_embd", "n_positions", "longest")
    cli.positive(args, "report_sentences", "report_samples")
    cli.at_least(0, args, "broad_steps", "plain_steps", "warmup", "reader_sentences")
    cli.check_seed(args.seed)
    cli.check_device(args.device)
    for name in ("temperature", "lr", "decay"):
        if not 0 < (value := getattr(args, name)) < math.inf:
            raise ValueError(f"{cli.flag(name)} {value}: must be above 0")


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line."""
    args = cli.parse(Args, argv, __doc__, smoke=SMOKE)
    check(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        train, unsup, test = (made_up_reviews(n, seed=n) for n in (100, 101, 50))
    else:
        train, unsup, test = (read_reviews(args.data, name) for name in ("train", "unsup", "test"))
    report: dict[str, Any] = {"options": {k: str(v) for k, v in sorted(asdict(args).items())}}
    if not args.evaluate:
        report["training"] = pretrain(train + unsup, args)
        if report["training"]["step"] < args.broad_steps + args.plain_steps:
            return report
    # The report is about the numbers as shipped.
    reader = Reader.load(args.evaluate or args.work / "model", args.device)
    report |= make_report(reader, train, unsup, test, args)
    (args.work / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    log.info("%s", json.dumps({k: v for k, v in report.items() if k != "options"}, indent=1))
    return report


if __name__ == "__main__":
    main()
