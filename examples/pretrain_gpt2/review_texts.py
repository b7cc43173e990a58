"""Film reviews as texts: read them, split them into clean sentences, cut those into clauses."""

from __future__ import annotations

import json
import lzma
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

BREAK = re.compile(r"(?:<br\s*/?>|\n)+")
_TITLES = (
    "Mr",
    "Mrs",
    "Ms",
    "Dr",
    "Prof",
    "St",
    "Jr",
    "Sr",
    "vs",
    "etc",
    "Lt",
    "Sgt",
    "Capt",
    "No",
)
_NOT_ITS_END = "".join(rf"(?<!\b{title}\.)" for title in (*_TITLES, "[A-Z]"))
_NEXT_SENTENCE = re.compile(rf"(?<=[.!?]){_NOT_ITS_END}\s+(?=[A-Z\"'(])")
_PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,.;:!?'\"()&$%/-]*[.!?]")
_CUT = re.compile(rf"\b(?:{'|'.join(_TITLES)}|[A-Z])\.$")
_UNWANTED = re.compile(r"http|www|\.\.|!!|\?\?")


def is_clean(sentence: str) -> bool:
    """Whether this is a plain sentence of 3 to 30 words, whole as far as one can tell."""
    return (
        3 <= sentence.count(" ") + 1 <= 30
        and _PLAIN.fullmatch(sentence) is not None
        and not _CUT.search(sentence)
        and not _UNWANTED.search(sentence)
        and sentence.count('"') % 2 == 0
        and sentence.count("(") == sentence.count(")")
        and 4 * sum(char.isupper() for char in sentence) <= len(sentence)  # no shouting
    )


def paragraphs(review: str) -> list[list[str]]:
    """A review's sentences, paragraph by paragraph."""
    review = review.replace("’", "'").replace("`", "'")
    return [_NEXT_SENTENCE.split(" ".join(part.split())) for part in BREAK.split(review)]


def clean_sentences(reviews: Iterable[str]) -> list[str]:
    """The distinct clean sentences of the reviews, in order."""
    return list(
        dict.fromkeys(s for r in reviews for part in paragraphs(r) for s in part if is_clean(s))
    )


# A clause that can stand alone begins with its subject and holds a finite verb.
_SUBJECT = re.compile(
    r"(?:I|[Tt]he|it|he|she|they|we|you|this|that|there|these|his|her|its|their|my|some|most|all"
    r"|both|nothing|everything|everyone|nobody)\b"
)
_VERB = re.compile(
    r"\b(?:is|was|are|were|am|be|been|has|had|have|do|does|did|can|could|will|would|should|must"
    r"|made|makes|make|saw|love|loved|like|liked|hate|hated|think|thought|enjoyed|found|felt"
    r"|seems|seemed|looks|looked|gets|got|goes|went|comes|came|plays|played|gives|gave|keeps"
    r"|kept|know|knew|want|wanted|watched|expected|recommend|works|worked)\b|n't\b|'(?:s|re|m)\b"
)
_JOINT = re.compile(
    r"[,;] (?:but|and|so|yet|because|although|though|while|whereas) |; "
    r"| (?:because|although|even though|but) "
)
# A sentence that begins so is not whole without its second part.
_DEPENDENT = re.compile(
    r"(?:While|If|When|Although|Though|As|Because|Since|After|Before|Despite|With|For|In|Even"
    r"|Whether|Once|Until|Unless|Not|To|By|On|At|From|Without|What|How|Where|Who|Why|Which|Whenever)\b"
)


def clauses(sentence: str) -> list[str]:
    """The main clauses of a compound sentence, each as a sentence of its own.

    Short plain sentences are what a small model learns to write well, and long ones hold many.
    """
    if _DEPENDENT.match(sentence) or not (joint := _JOINT.search(sentence)):
        return []
    first, second = sentence[: joint.start()].rstrip(" ,;"), sentence[joint.end() :]
    found = [f"{first}."] if _VERB.search(first) and sentence[-1] != "?" else []
    if _SUBJECT.match(second) and _VERB.search(second):
        found.append(second[0].upper() + second[1:])
    return [clause for clause in found if clause.count(" ") >= 3 and is_clean(clause)]


def passages(reviews: Iterable[str]) -> list[str]:
    """Two or three clean sentences that follow each other: they fill the later positions."""
    found = []
    for part in (part for review in reviews for part in paragraphs(review)):
        for i in range(0, len(part) - 1, 3):
            group = part[i : i + 2 + i % 2]
            if all(map(is_clean, group)):
                found.append(" ".join(group))
    return found


def shared_runs(texts: Sequence[str], reviews: Iterable[str], n: int = 8) -> dict[int, int]:
    """The longest run of words that a text shares with a review, by the text's index.

    Only runs of `n` words or more count; case does not.
    """
    grams: dict[str, set[int]] = {}
    for index, words in enumerate(text.lower().split() for text in texts):
        for i in range(len(words) - n + 1):
            grams.setdefault(" ".join(words[i : i + n]), set()).add(index)
    longest: dict[int, int] = {}
    for review in reviews:
        words = BREAK.sub(" ", review).lower().split()
        run: dict[int, int] = {}  # the shared run that ends here, by text
        for i in range(len(words) - n + 1):
            here = grams.get(" ".join(words[i : i + n]), ())
            run = {index: run.get(index, n - 1) + 1 for index in here}
            for index, length in run.items():
                longest[index] = max(length, longest.get(index, 0))
    return longest


def as_small(sentence: str) -> str:
    """The sentence as word vocabularies write it: lower case behind a leading space."""
    return " " + re.sub(r"\bi\b", "I", sentence.lower())


def read_reviews(folder: Path | None, split: str) -> list[str]:
    """Reviews of `split` "train", "unsup" or "test", from a folder or the Hugging Face hub."""
    if folder is None:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                "--data is not given and the package `datasets` is missing: pass --data DIR with"
                " imdb_train.jsonl[.xz], imdb_unsup… and imdb_test…, or pip install datasets"
            ) from error
        name = {"unsup": "unsupervised"}.get(split, split)
        return list(datasets.load_dataset("stanfordnlp/imdb", split=name)["text"])
    for file in (folder / f"imdb_{split}.jsonl.xz", folder / f"imdb_{split}.jsonl"):
        if file.is_file():
            with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf8") as f:
                return [json.loads(line)["text"] for line in f]
    raise ValueError(f"--data {folder} holds no imdb_{split}.jsonl.xz or .jsonl")


def made_up_reviews(n: int, seed: int) -> list[str]:
    """Reviews from a grammar, for `--smoke` and the tests."""
    rng = random.Random(seed)
    nouns, verbs = ["movie", "film", "story", "acting", "cast", "plot"], ["is", "was"]
    words = ["good", "bad", "great", "awful", "charming", "dull", "funny", "Shakespearean"]

    def sentence() -> str:
        return (
            f"{rng.choice(['The', 'This'])} {rng.choice(nouns)} {rng.choice(verbs)}"
            f" {rng.choice(['', 'very ', 'not '])}{rng.choice(words)}{rng.choice('.!')}"
        )

    return [" ".join(sentence() for _ in range(rng.randint(2, 6))) for _ in range(n)]
