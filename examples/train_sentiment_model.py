"""Makes the bundled judge: a small LSTM that learns from a large classifier and its own holes.

    python examples/train_sentiment_model.py --data DIR --teacher DIR --out runs/judge

Stages, each of which leaves a file in `--out` and is skipped if that file is there:

1. `texts`: SST-2, and sentences of the IMDb reviews (Maas et al. 2011).
2. `labels`: the teacher's opinion of each (a Hugging Face classifier fine-tuned on SST-2).
3. `start`: the vocabulary, and an embedding of each token from the teacher's states.
4. `student`: the network learns the teacher's opinions, sentences made by program whose label is
   known, and to tell language from word salad.
5. `hunt`: REINFORCE without KL looks for what the student likes and nobody would write; what it
   finds becomes training data. Repeated `--hunt-rounds` times.
6. the files: `judge.safetensors`, `judge.json` and `report.json`.

Without `--data` the data sets come from the Hugging Face hub. `--smoke` runs every stage in seconds
on texts made by program.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # for the files beside this one
from judge_data import Corpus, Teacher, detokenise, label_corpus, read_corpus, read_sst2
from judge_hunt import Find, hunt, usual_nll
from judge_texts import SALADS, labelled, salad

from text_sentiment_env.judge import Judge, SentimentNetwork, Tokenizer, pad
from text_sentiment_env.vocabulary import Vocabulary, gpt2_token_bytes

log = logging.getLogger("train_sentiment_model")

TEACHER = "distilbert-base-uncased-finetuned-sst-2-english"


# ---------------------------------------------------------------------------------------- 3. start


def most_frequent_tokens(texts: Iterable[str], size: int) -> list[int]:
    """The `size` GPT-2 tokens that cover most of the lower-cased texts, in order of their id."""
    everything = Tokenizer(range(50257))
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update((everything([text])[0] - 2).tolist())
    return sorted(token for token, _ in counts.most_common(size))


def embed_tokens(teacher: Any, token_ids: Sequence[int], width: int) -> Tensor:
    """The teacher's state for each token, on its `width` main axes; (tokens + 2, width).

    The student then starts with a notion of which words are alike; rows 0 and 1 (padding, unknown)
    are zero.
    """
    words = [gpt2_token_bytes()[i].decode(errors="replace").strip() for i in token_ids]
    states = torch.from_numpy(teacher.states(words))
    states -= states.mean(0)
    _, _, axes = torch.linalg.svd(states, full_matrices=False)
    projected = states @ axes[:width].T
    table = torch.zeros(len(words) + 2, width)
    table[2:, : projected.shape[1]] = 0.3 * projected / projected.std()
    return table


# -------------------------------------------------------------------------------------- 4. student


@dataclass
class Samples:
    """Texts with soft targets; a target of NaN asks for nothing."""

    texts: list[str]
    positive: npt.NDArray[np.float32]  # given that the text is readable
    readable: npt.NDArray[np.float32]

    def __add__(self, other: Samples) -> Samples:
        return Samples(
            self.texts + other.texts,
            np.concatenate([self.positive, other.positive]),
            np.concatenate([self.readable, other.readable]),
        )


def readable(texts: list[str], positive: npt.ArrayLike) -> Samples:
    return Samples(texts, np.asarray(positive, np.float32), np.ones(len(texts), np.float32))


def unreadable(texts: list[str]) -> Samples:
    return Samples(texts, np.full(len(texts), np.nan, np.float32), np.zeros(len(texts), np.float32))


def mix(logits: npt.NDArray[np.float32], label: npt.NDArray[np.float32], share: float) -> Any:
    """The teacher's probability, with a share of the true label where there is one."""
    teacher = 1 / (1 + np.exp(-logits))
    return np.where(np.isnan(label), teacher, (1 - share) * teacher + share * label)


def made_by_program(pool: Sequence[str], sizes: tuple[int, int], rng: random.Random) -> Samples:
    """Fresh labelled sentences and fresh salads."""
    texts, targets = zip(*labelled(sizes[0], rng), strict=True)
    return readable(list(texts), targets) + unreadable(salad(sizes[1], pool, rng))


def batches(
    rows: Sequence[npt.NDArray[np.int64]], size: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Random batches of texts of like length, in random order."""
    lengths = np.array([len(row) for row in rows])
    order = np.lexsort((rng.random(len(rows)), lengths))  # by length, ties at random
    order = order[lengths[order] > 0]
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    return [chunks[i] for i in rng.permutation(len(chunks))]


def loss_of(network: SentimentNetwork, ids: Tensor, samples: Samples, index: Any) -> Tensor:
    """Cross-entropy of both heads against their soft targets.

    Telling language from salad is the easier task: at full weight it costs the other one accuracy.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        outputs = network(ids)
    loss = torch.zeros((), device=ids.device)
    targets = (1.0, samples.positive), (0.4, samples.readable)
    for logits, (weight, target) in zip(outputs, targets, strict=True):
        wanted = torch.from_numpy(target[index]).to(ids.device)
        known = ~wanted.isnan()
        losses = F.binary_cross_entropy_with_logits(
            logits.float()[known], wanted[known], reduction="sum"
        )
        loss = loss + weight * losses / len(index)
    return loss


class Trainer:
    """AdamW with a cosine schedule, and the running average of the weights that is kept."""

    def __init__(self, network: SentimentNetwork, tokenizer: Tokenizer, args: Any) -> None:
        self.network, self.tokenizer, self.args = network, tokenizer, args
        self.device = next(network.parameters()).device
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def fit(
        self,
        fixed: Samples,
        fresh: Callable[[int], Samples],
        epochs: int,
        learning_rate: float,
        checkpoint: Path,
    ) -> None:
        """Trains on `fixed` and on what `fresh(epoch)` makes for each epoch; resumes."""
        network, args = self.network, self.args
        optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
        first = 0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            self.average, first = state["average"], state["epoch"]
        rows = self.tokenizer(fixed.texts)
        network.train()
        for epoch in range(first, epochs):
            # A generator of its own for each epoch: a resumed run draws what the whole run drew.
            rng = np.random.default_rng((args.seed, epoch))
            torch.manual_seed(args.seed * 1000 + epoch)
            made = fresh(epoch)
            samples, all_rows = fixed + made, rows + self.tokenizer(made.texts)
            order = batches(all_rows, args.batch_size, rng)
            losses = []
            for step, index in enumerate(
                bar := tqdm(order, desc=f"epoch {epoch + 1}/{epochs}", mininterval=10)
            ):
                done = (epoch + step / len(order)) / epochs
                warm_up = min(1.0, (done * len(order) * epochs + 1) / 200)
                for group in optimizer.param_groups:
                    group["lr"] = (
                        learning_rate * warm_up * (0.02 + 0.98 * math.cos(math.pi * done / 2) ** 2)
                    )
                ids = pad([all_rows[i] for i in index])
                ids[(rng.random(ids.shape) < args.word_dropout) & (ids != 0)] = 1
                loss = loss_of(network, torch.from_numpy(ids).to(self.device), samples, index)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                self._update_average()
                losses.append(loss.item())
                if step % 200 == 0:
                    bar.set_postfix(loss=f"{np.mean(losses[-400:]):.4f}")
            log.info(
                "epoch %d: loss %.4f on %d texts", epoch + 1, np.mean(losses[-2000:]), len(rows)
            )
            torch.save(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": self.average,
                    "epoch": epoch + 1,
                },
                checkpoint,
            )

    @torch.no_grad()
    def _update_average(self) -> None:
        average = list(self.average.values())
        torch._foreach_lerp_(average, list(self.network.state_dict().values()), 0.001)


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


def hunt_round(
    start: Any, judge: Judge, round_: int, args: argparse.Namespace
) -> tuple[Samples, dict[str, Any]]:
    """Hunts with the start model's vocabulary and with the small one; their lessons and figures."""
    small = set(Vocabulary.load("small").token_ids.tolist()) & set(start.token_ids)
    starts = {"reviews": start, "small": start.restrict(sorted(small))}
    lessons, report = Samples([], np.empty(0, np.float32), np.empty(0, np.float32)), {}
    for name, model in starts.items():
        found = hunt(
            model, judge, updates=args.hunt_updates, seed=args.seed + round_, name=f"hunt {name}"
        )
        lessons += read_finds(found.finds, usual_nll(model))
        report[name] = found.report
        log.info("hunt %d, %s: %s", round_, name, found.report)
    return lessons, report


# ---------------------------------------------------------------------------------------- 6. files


def calibrate(
    network: SentimentNetwork, tokenizer: Tokenizer, rows: Sequence[tuple[str, int]]
) -> float:
    """Divides the sentiment logits by the temperature that suits these labels best; returns it."""
    network.eval()
    with torch.inference_mode():
        ids = torch.from_numpy(pad(tokenizer([text for text, _ in rows])))
        logits = network.to("cpu")(ids)[0]
    labels = torch.tensor([float(label) for _, label in rows])
    temperatures = [0.5 * 1.02**i for i in range(100)]
    losses = [F.binary_cross_entropy_with_logits(logits / t, labels).item() for t in temperatures]
    best = temperatures[int(np.argmin(losses))]
    with torch.no_grad():
        for parameter in network.sentiment[-1].parameters():
            parameter.div_(best)
    return best


# ---------------------------------------------------------------------------------------- 6. files


def write_judge(
    folder: Path, weights: dict[str, Tensor], token_ids: Sequence[int], args: Any
) -> Judge:
    """Writes the two files of a judge, in half precision, and reads them back."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: value.detach().half().cpu().contiguous() for name, value in weights.items()}
    save_file(halves, folder / "judge.safetensors")
    config = {"width": args.width, "hidden": args.hidden, "token_ids": list(map(int, token_ids))}
    (folder / "judge.json").write_text(json.dumps(config, separators=(",", ":")), "utf-8")
    return Judge(directory=folder)


def accuracy(judge: Judge, rows: Sequence[tuple[str, int]]) -> float:
    """The share of texts whose score has the sign of their label, in percent."""
    scores, labels = judge([text for text, _ in rows]), np.array([label for _, label in rows])
    return round(100 * float(((scores > 0) == (labels == 1)).mean()), 2)


def reliability(judge: Judge, rows: Sequence[tuple[str, int]]) -> list[dict[str, float]]:
    """Ten bins of P(positive) with their share of positive labels, and the calibration error."""
    positive = (judge([text for text, _ in rows]) + 1) / 2
    labels = np.array([label for _, label in rows])
    bins = np.minimum((10 * positive).astype(int), 9)
    return [
        {
            "from": b / 10,
            "texts": int((bins == b).sum()),
            "predicted": round(float(positive[bins == b].mean()), 3),
            "observed": round(float(labels[bins == b].mean()), 3),
        }
        for b in range(10)
        if (bins == b).any()
    ]


def milliseconds(judge: Judge) -> float:
    """Time for 64 texts of 20 tokens, the best of 20 calls."""
    vocabulary, rng = Vocabulary.load("small"), np.random.default_rng(0)
    texts = [vocabulary.decode(row) for row in rng.integers(0, vocabulary.end_index, (64, 20))]
    durations = []
    for _ in range(20):
        begin = time.perf_counter()
        judge(texts)
        durations.append(time.perf_counter() - begin)
    return round(1000 * min(durations), 1)


def measure(judge: Judge, sets: dict[str, list[tuple[str, int]]]) -> dict[str, Any]:
    """Figures for the model card."""
    report: dict[str, Any] = {}
    for name, rows in sets.items():
        report[name] = {
            "published": accuracy(judge, rows),
            "detokenised": accuracy(judge, [(detokenise(text), label) for text, label in rows]),
            "reliability": reliability(judge, rows),
        }
    # Kinds of salad seen in training, from sentences and seeds that were not.
    pool = [detokenise(text) for text, _ in sets["dev"]]
    report["salad"] = {
        kind.__name__.strip("_"): round(
            float(
                (np.abs(judge([kind(random.Random(i), pool) for i in range(200)])) <= 0.3).mean()
            ),
            3,
        )
        for kind in SALADS
    }
    report["milliseconds_64x20"] = milliseconds(judge)
    return report


# ------------------------------------------------------------------------------------------- main


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of sst2_*.tsv.xz and imdb_*.jsonl.xz; default: the hub")
    add("--teacher", default=TEACHER, help="Hugging Face classifier, id or folder")
    add("--out", type=Path, default=Path("runs/judge"), help="folder for all results")
    add("--start-model", default="reviews", help="GPT-2 that the hunt starts from")
    add("--sentences", type=int, default=180_000, help="IMDb sentences to label")
    add("--tokens", type=int, default=16_000, help="rows of the embedding")
    add("--width", type=int, default=128, help="of the embedding")
    add("--hidden", type=int, default=128, help="of each LSTM")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=2e-3)
    add("--dropout", type=float, default=0.3)
    add("--word-dropout", type=float, default=0.05)
    add("--review", type=int, default=50_000, help="sentences of each data set seen again a round")
    add("--hunt-rounds", type=int, default=3)
    add("--hunt-updates", type=int, default=150)
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="of the CPU; default: torch's choice")
    add("--device", default="cpu", help="cpu or cuda; the hunt always runs on the CPU")
    add("--final", action="store_true", help="measure on SST-2's test sentences too")
    add("--smoke", action="store_true", help="every stage in seconds, on texts made by program")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.tokens, args.width, args.hidden, args.epochs = 500, 16, 16, 2
        args.hunt_rounds, args.hunt_updates = min(args.hunt_rounds, 1), 2
    return args


def make_corpora(
    args: argparse.Namespace,
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


def load_start_model(args: argparse.Namespace) -> Any:
    """The GPT-2 that hunts start from."""
    from agents.gpt2 import GPT2, GPT2Config

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
        self, args: argparse.Namespace, corpora: dict[str, Corpus], teacher: Teacher | SmokeTeacher
    ) -> None:
        """Stages 2 and 3: the teacher's labels, the vocabulary and the first embedding."""
        self.args = args
        sst2, imdb = corpora["sst2"], corpora["imdb"]
        plain = [detokenise(text) for text in sst2.texts]
        labels = args.out / "labels"
        self.sst2 = readable(
            sst2.texts, mix(label_corpus(teacher, sst2.texts, labels / "sst2"), sst2.label, 0.2)
        ) + readable(plain, mix(label_corpus(teacher, plain, labels / "plain"), sst2.label, 0.2))
        self.imdb = readable(
            imdb.texts, mix(label_corpus(teacher, imdb.texts, labels / "imdb"), imdb.label, 0.1)
        )
        self.pool = imdb.texts + plain  # the sentences to make salad of
        path = args.out / "start.pt"
        if not path.exists():
            token_ids = most_frequent_tokens(self.imdb.texts + self.sst2.texts, args.tokens)
            table = embed_tokens(teacher, token_ids, args.width)
            torch.save({"token_ids": token_ids, "table": table}, path)
        begin = torch.load(path, weights_only=True)
        self.tokenizer = Tokenizer(begin["token_ids"])
        torch.manual_seed(args.seed)
        self.network = SentimentNetwork(
            len(begin["token_ids"]), args.width, args.hidden, args.dropout
        )
        self.network.embedding.weight.data.copy_(begin["table"])
        self.network.to(args.device)

    def learn(self, name: str, fixed: Samples, epochs: int, learning_rate: float) -> None:
        """Trains on `fixed` and on texts made by program, and keeps the average of the weights."""
        count = len(fixed.texts)

        def fresh(epoch: int) -> Samples:
            rng = random.Random(f"{name} {self.args.seed} {epoch}")
            return made_by_program(self.pool, (count // 12, count // 6), rng)

        trainer = Trainer(self.network, self.tokenizer, self.args)
        trainer.fit(fixed, fresh, epochs, learning_rate, self.args.out / f"{name}.pt")
        self.network.load_state_dict(trainer.average)

    def sample(self, count: int, seed: int) -> Samples:
        """`count` of the sentences of each data set."""
        parts = []
        for part in (self.sst2, self.imdb):
            every = range(len(part.texts))
            chosen = random.Random(seed).sample(every, min(count, len(every)))
            texts = [part.texts[i] for i in chosen]
            parts.append(Samples(texts, part.positive[chosen], part.readable[chosen]))
        return parts[0] + parts[1]

    def write(self, folder: Path) -> Judge:
        """The judge as it is now."""
        return write_judge(folder, self.network.state_dict(), self.tokenizer.token_ids, self.args)


class SmokeTeacher:
    """Stands in for a classifier where there is none."""

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Log-odds from a few words."""
        good, bad = ("good", "great", "love"), ("bad", "terrible", "hate")
        return np.array(
            [sum(w in t for w in good) - sum(w in t for w in bad) for t in texts], np.float32
        )

    def states(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Random numbers."""
        return np.random.default_rng(0).normal(size=(len(texts), 32)).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs all stages that have not run yet; returns the report."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    corpora, sets = make_corpora(args)
    teacher = SmokeTeacher() if args.smoke else Teacher(args.teacher, torch.device(args.device))
    student = Student(args, corpora, teacher)
    student.learn("student", student.imdb + student.sst2, args.epochs, args.learning_rate)
    judge = student.write(args.out / "round-0")
    report: dict[str, Any] = {"round 0": measure(judge, {"dev": sets["dev"]})}
    log.info("before the hunt: %s", report["round 0"])

    start = load_start_model(args) if args.hunt_rounds else None
    lessons = Samples([], np.empty(0, np.float32), np.empty(0, np.float32))
    for round_ in range(1, args.hunt_rounds + 2):
        path = args.out / f"hunt-{round_}.pt"
        if args.hunt_rounds and not path.exists():
            found, figures = hunt_round(start, judge, round_, args)
            torch.save(
                {
                    "texts": found.texts,
                    "readable": torch.from_numpy(found.readable),
                    "report": figures,
                },
                path,
            )
        if path.exists():
            saved = torch.load(path, weights_only=True)
            report[f"hunt {round_}"] = saved["report"]
            targets = saved["readable"].numpy()
            lessons += Samples(saved["texts"], np.full(len(targets), np.nan, np.float32), targets)
        if round_ > args.hunt_rounds:
            break  # the last hunt only measures
        fixed = student.sample(args.review, round_) + lessons
        student.learn(f"round-{round_}", fixed, 1, args.learning_rate / 4)
        judge = student.write(args.out / f"round-{round_}")
        report[f"round {round_}"] = measure(judge, {"dev": sets["dev"]})
        log.info("after round %d: %s", round_, report[f"round {round_}"])

    report["temperature"] = calibrate(student.network, student.tokenizer, sets["dev"])
    report["final"] = measure(student.write(args.out), sets)
    (args.out / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    log.info("final: %s", report["final"])
    return report


if __name__ == "__main__":
    main()
