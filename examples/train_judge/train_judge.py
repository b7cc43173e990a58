"""Makes the bundled judge: a small LSTM that learns from a large classifier and its own holes.

    python examples/train_judge/train_judge.py --data DIR --encoder DIR --out runs/judge

Stages, each of which leaves a file in `--out` and is skipped if that file is there:

1. `teacher`: a pretrained encoder is fine-tuned on SST-2 (Socher et al. 2013).
2. `labels`: its opinion of SST-2's texts, of variations of them, and of sentences of the IMDb
   reviews (Maas et al. 2011).
3. `tokens`: the vocabulary, and the teacher's state for each token.
4. `student`: the network learns the teacher's opinions, sentences made by program whose label is
   known, and to tell language from word salad.
5. `hunt`: before some of the student's later epochs, REINFORCE without KL looks for what the student
   likes and nobody would write. What it finds belongs to the training data from then on.
6. the files: `judge.safetensors`, `judge.json` and `report.json`.

Without `--data` the data sets come from the Hugging Face hub. `--smoke` runs every stage in seconds
on texts made by program.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from judge_data import (
    Corpus,
    as_written,
    is_statement,
    read_corpus,
    read_sst2,
    repeats_itself,
    vary,
)
from judge_embedding import TokenEmbedding, choose_tokens, count_tokens, token_states
from judge_hunt import Find, hunt, usual_nll
from judge_report import calibrate, measure
from judge_teacher import Teacher, fine_tune, label_corpus
from judge_texts import labelled
from judge_training import Samples, Trainer, made_by_program, mix, readable
from safetensors.torch import save

from agents import cli
from agents.atomic import atomic_write
from agents.gpt2 import GPT2, GPT2Config
from text_sentiment_env.judge import Judge, SentimentNetwork, Tokenizer
from text_sentiment_env.vocabulary import Vocabulary

log = logging.getLogger("train_judge")


@dataclass
class Args:
    """All flags."""

    data: Path | None = None
    """folder of sst2_*.tsv.xz and imdb_*.jsonl.xz; default: the hub"""
    encoder: str = "sentence-transformers/all-mpnet-base-v2"
    """pretrained encoder to make the teacher of: Hugging Face id or folder"""
    teacher: str | None = None
    """a classifier fine-tuned on SST-2, id or folder, instead of making one"""
    out: Path = Path("runs/judge")
    """folder for all results"""
    start_model: str = "reviews"
    """GPT-2 that the hunt starts from"""
    sentences: int = 200_000
    """IMDb sentences to label"""
    variations: int = 120_000
    """variations of SST-2's texts to label"""
    width: int = 128
    """width of the embedding"""
    hidden: int = 128
    """width of each LSTM"""
    epochs: int = 9
    """passes over the texts"""
    batch_size: int = 256
    """texts in each step"""
    learning_rate: float = 2.5e-3
    """AdamW's highest"""
    dropout: float = 0.4
    """dropout of the network"""
    word_dropout: float = 0.05
    """share of the words that the network does not see in training"""
    salad: bool = True
    """learn to tell language from word salad; --no-salad, which hunts for none, shows the cost"""
    readable_weight: float = 0.4
    """weight of the loss of telling language from salad, beside 1 for the sentiment's"""
    hunt_rounds: int = 4
    """hunts to learn from, before as many epochs that precede the last; one more measures the result"""
    hunt_updates: int = 150
    """gradient steps of a hunt"""
    seed: int = 0
    """seed of everything random"""
    threads: int | None = None
    """CPU threads; default: torch's choice"""
    device: str = "cpu"
    """cpu or cuda; the hunt always runs on the CPU"""
    final: bool = False
    """measure on SST-2's test sentences too"""
    smoke: bool = False
    """other defaults: every stage in seconds, on texts made by program"""


SAME_RESULT = ("out", "threads", "device", "final")  # flags that may change as a run goes on
SMOKE = Args(
    variations=100,
    width=16,
    hidden=16,
    epochs=3,
    hunt_rounds=1,
    hunt_updates=2,
    smoke=True,
)


# ----------------------------------------------------------------------------------------- 5. hunt


def read_finds(finds: Sequence[Find], usual_nll: float) -> Samples:
    """What a hunt's texts teach: those the start model finds odd, or that repeat, are unreadable.

    Odd is a perplexity above three times that of the start model's own texts, or a single token out
    of place. In order is a perplexity below 1.35 times theirs and no more repetition than people
    allow themselves. What lies between teaches nothing.
    """
    odd = [
        f.nll > usual_nll + np.log(3)
        or f.worst > usual_nll + 6.5
        or f.repeated_tokens > 0.35
        or f.repeated_pairs > 0.2
        for f in finds
    ]
    fine = [
        f.nll < usual_nll + 0.3
        and f.worst < usual_nll + 5
        and f.repeated_tokens < 0.2
        and f.repeated_pairs < 0.1
        for f in finds
    ]
    target = np.where(odd, 0.0, np.where(fine, 1.0, np.nan)).astype(np.float32)
    return Samples([f.text for f in finds], np.full(len(finds), np.nan, np.float32), target)


def rounds_before(epoch: int, args: Args) -> range:
    """The hunts that come before an epoch (from 0): the last is learned from twice, others longer."""
    return range(1, 1 + min(args.hunt_rounds, epoch + 2 + args.hunt_rounds - args.epochs))


def hunted(start: GPT2, make_judge: Callable[[], Judge], round_: int, args: Args) -> dict[str, Any]:
    """Hunts with the start model's vocabulary and with the small one: their lessons and figures."""
    path = args.out / f"hunt-{round_}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    judge = make_judge()
    small = set(Vocabulary.load("small").token_ids.tolist()) & set(start.token_ids or ())
    starts = {"reviews": start, "small": start.restrict(sorted(small))}
    lessons, report = Samples([], np.empty(0, np.float32), np.empty(0, np.float32)), {}
    for name, model in starts.items():
        one = hunt(
            model, judge, updates=args.hunt_updates, seed=args.seed + round_, name=f"hunt {name}"
        )
        lessons += read_finds(one.finds, usual_nll(model))
        report[name] = one.report
        log.info("hunt %d, %s: %s", round_, name, one.report)
    found = {"texts": lessons.texts, "readable": torch.from_numpy(lessons.readable)}
    with atomic_write(path) as temporary:
        torch.save(found | {"report": report}, temporary)
    return found | {"report": report}


# ---------------------------------------------------------------------------------------- 6. files


def write_judge(folder: Path, network: SentimentNetwork, token_ids: Sequence[int]) -> Judge:
    """Writes the two files of a judge, and reads them back.

    Weights are in half precision, the embedding in 8 bits with a scale for each row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    table = weights.pop("embedding.weight")
    scale = (table.abs().amax(1, keepdim=True) / 127).clamp(min=1e-6).half()
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    rows = {"embedding.weight": (table / scale.float()).round().clamp(-127, 127).to(torch.int8)}
    content = save(halves | rows | {"embedding.scale": scale})
    with atomic_write(folder / "judge.safetensors") as temporary:
        temporary.write_bytes(content)
    config = {
        "width": table.shape[1],
        "hidden": network.forwards.hidden_size,
        "sha256": hashlib.sha256(content).hexdigest(),
        "token_ids": list(map(int, token_ids)),
    }
    with atomic_write(folder / "judge.json") as temporary:
        temporary.write_text(json.dumps(config, separators=(",", ":")), "utf-8")
    return Judge(directory=folder)


# ------------------------------------------------------------------------------------------- main


def make_corpora(
    args: Args,
) -> tuple[dict[str, Corpus], dict[str, list[tuple[str, int]]]]:
    """The texts to learn from, and the labelled sentences to measure on."""
    if args.smoke:
        rng = random.Random(args.seed)
        rows = [(text, int(target > 0.5)) for text, target in labelled(600, rng)]
        return {"sst2": Corpus.of(rows[:200]), "imdb": Corpus.of(rows[200:500])}, {
            "dev": rows[500:]
        }
    sets = {"dev": read_sst2(args.data, "dev")}
    if args.final:
        sets["test"] = read_sst2(args.data, "test")
    return read_corpus(args.data, args.sentences, args.seed), sets


def make_teacher(args: Args) -> Teacher:
    """Stage 1: the classifier whose opinions the student learns."""
    device = torch.device(args.device)
    if args.teacher is None:
        folder = args.out / "teacher"
        rows = read_sst2(args.data, "train")
        fine_tune(args.encoder, rows, folder, device=device, seed=args.seed)
    return Teacher(args.teacher or str(args.out / "teacher"), device)


def load_start_model(args: Args) -> GPT2:
    """The GPT-2 that hunts start from."""
    if not args.smoke:
        return GPT2.from_pretrained(args.start_model)
    token_ids = tuple(Vocabulary.load("small").token_ids.tolist())
    return GPT2(
        GPT2Config(
            len(token_ids), n_positions=32, n_embd=16, n_layer=1, n_head=2, token_ids=token_ids
        )
    )


class Student:
    """The network in training, and the texts it learns from."""

    def __init__(
        self, args: Args, corpora: dict[str, Corpus], teacher: Teacher | SmokeTeacher
    ) -> None:
        """Stages 2 and 3: the teacher's labels, the vocabulary and the first embedding."""
        self.args = args
        sst2, imdb = corpora["sst2"], corpora["imdb"]
        labels = args.out / "labels"
        sst2_targets = mix(label_corpus(teacher, sst2.texts, labels / "sst2"), sst2.label, 0.3)
        plain = [as_written(text) for text in sst2.texts]
        self.sst2 = readable(sst2.texts, sst2_targets) + readable(plain, sst2_targets)
        varied = vary(sst2.texts, args.variations, random.Random(args.seed))
        logits = label_corpus(teacher, varied, labels / "varied")
        nothing = np.full(len(varied), np.nan, np.float32)  # neither language nor salad
        self.varied = Samples(varied, mix(logits, nothing, 0.0), nothing)
        imdb_logits = label_corpus(teacher, imdb.texts, labels / "imdb")
        self.imdb = readable(imdb.texts, mix(imdb_logits, imdb.label, 0.1))
        self.pool = imdb.texts + plain  # the sentences to make salad of
        path = args.out / "tokens.pt"
        if not path.exists():
            sizes = self.made_sizes(len(self.sst2.texts + self.imdb.texts))
            made = made_by_program(self.pool, sizes, random.Random(args.seed))
            counts = count_tokens(self.sst2.texts + self.imdb.texts + made.texts)
            token_ids = choose_tokens(counts)
            states = token_states(teacher.states, token_ids)
            seen = torch.from_numpy(counts[token_ids])
            with atomic_write(path) as temporary:
                torch.save({"token_ids": token_ids, "states": states, "seen": seen}, temporary)
        tokens = torch.load(path, weights_only=True)
        self.tokenizer = Tokenizer(tokens["token_ids"])
        torch.manual_seed(args.seed)
        self.embedding = TokenEmbedding(tokens["states"], tokens["seen"].numpy(), args.width)
        self.network = SentimentNetwork(0, args.width, args.hidden, args.dropout)
        self.network.embedding = self.embedding  # in the place of a plain table
        self.network.to(args.device)

    def made_sizes(self, count: int) -> tuple[int, int]:
        """Numbers of labelled texts and of salads made by program beside `count` others."""
        return count // 8, count // 6 if self.args.salad else 0

    def learn(self, start: GPT2 | None) -> dict[str, Any]:
        """Stages 4 and 5: trains, hunts from `start` on the way, and keeps the average of the weights.

        Returns:
            The hunts' figures.
        """
        args, fixed = self.args, self.everything()
        sizes = self.made_sizes(len(fixed.texts))
        trainer = Trainer(self.network, self.tokenizer, args)
        hunts: dict[int, dict[str, Any]] = {}

        def hunt_now(round_: int) -> dict[str, Any]:
            assert start is not None  # parse_arguments: there are hunts
            folder = args.out / f"before-hunt-{round_}"
            return hunted(start, lambda: self.write(folder, trainer.average), round_, args)

        def fresh(epoch: int) -> Samples:
            samples = made_by_program(self.pool, sizes, random.Random(f"{args.seed} {epoch}"))
            for round_ in rounds_before(epoch, args):
                if round_ not in hunts:
                    hunts[round_] = hunt_now(round_)
                readable = hunts[round_]["readable"].numpy()
                nothing = np.full(len(readable), np.nan, np.float32)
                samples += Samples(hunts[round_]["texts"], nothing, readable)
            return samples

        trainer.fit(fixed, fresh, args.epochs, args.learning_rate, args.out / "student.pt")
        self.network.load_state_dict(trainer.average)
        return {f"hunt {round_}": hunt["report"] for round_, hunt in hunts.items()}

    def everything(self) -> Samples:
        """All texts with the teacher's labels, those of two rare kinds three times."""
        told = np.array([is_statement(text) for text in self.imdb.texts])
        self.imdb.positive[told] = 0.5 + 0.1 * (self.imdb.positive[told] - 0.5)
        rare = self.imdb[told | np.array([repeats_itself(text) for text in self.imdb.texts])]
        log.info("%d of %d sentences tell a fact or repeat words", len(rare.texts), len(told))
        return self.imdb + rare + rare + self.varied + self.sst2

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> Judge:
        """A judge with these weights of the network, and a plain table for an embedding."""
        args, token_ids = self.args, self.tokenizer.token_ids
        embedding = copy.deepcopy(self.embedding)
        prefix = "embedding."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        embedding.load_state_dict(own)
        network = SentimentNetwork(len(token_ids), args.width, args.hidden)
        network.load_state_dict(
            {k: v for k, v in weights.items() if not k.startswith(prefix)}
            | {"embedding.weight": embedding.table()}
        )
        return write_judge(folder, network, token_ids)


class SmokeTeacher:
    """Stands in for a classifier where there is none."""

    device = torch.device("cpu")

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Log-odds from a few words."""
        good, bad = ("good", "great", "love"), ("bad", "terrible", "hate")
        return np.array(
            [sum(w in t for w in good) - sum(w in t for w in bad) for t in texts], np.float32
        )

    def states(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Random numbers."""
        return np.random.default_rng(0).normal(size=(len(texts), 32)).astype(np.float32)


def parse_arguments(argv: Sequence[str] | None) -> Args:
    args = cli.parse(Args, argv, __doc__, smoke=SMOKE)
    names = ("sentences", "variations", "width", "hidden", "epochs", "batch_size")
    cli.positive(args, *names, "threads")
    cli.check_device(args.device)
    if not args.salad:
        args = replace(args, readable_weight=0.0, hunt_rounds=0)
    if not 0 <= args.hunt_rounds < args.epochs:
        raise ValueError(
            f"--hunt-rounds {args.hunt_rounds} must be at least 0 and below --epochs {args.epochs}"
        )
    return args


def keep_arguments(args: Args) -> None:
    """Writes the flags that shape the result into --out, whose stages go on with the same ones alone.

    Raises:
        ValueError: naming a flag that is not the one that earlier stages had.
    """
    given = {name: value for name, value in vars(args).items() if name not in SAME_RESULT}
    given["data"] = None if args.data is None else str(args.data.resolve())
    path = args.out / "arguments.json"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(given, indent=1), "utf-8")
    for name, value in json.loads(path.read_text("utf-8")).items():
        if given.get(name) != value:
            raise ValueError(
                f"{cli.flag(name)} {given.get(name)}: the stages in --out {args.out} had {value}; give"
                " the same flags, or choose another --out"
            )


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs all stages that have not run yet; returns the report."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    keep_arguments(args)
    corpora, sets = make_corpora(args)
    report: dict[str, Any] = {}
    judge = trained(args, corpora, sets, report)
    report["final"] = measure(judge, sets)
    log.info("final: %s", report["final"])
    if args.hunt_rounds:
        # The last hunt only measures what the files are worth.
        start = load_start_model(args)
        report["last hunt"] = hunted(start, lambda: judge, args.hunt_rounds + 1, args)["report"]
    with atomic_write(args.out / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1), "utf-8")
    return report


def trained(
    args: Args,
    corpora: dict[str, Corpus],
    sets: dict[str, list[tuple[str, int]]],
    report: dict[str, Any],
) -> Judge:
    """Stages 1 to 6, with the calibration; `report` gets the figures on the way."""
    teacher = SmokeTeacher() if args.smoke else make_teacher(args)
    student = Student(args, corpora, teacher)
    report |= student.learn(load_start_model(args) if args.hunt_rounds else None)
    both = sets["dev"] + [(as_written(text), label) for text, label in sets["dev"]]
    report["temperature, bias"] = calibrate(student.network, student.tokenizer, both)
    return student.write(args.out, student.network.state_dict())


if __name__ == "__main__":
    main()
