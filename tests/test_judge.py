"""The shipped judge: right about short texts, deaf to word salad, small, quick, one text at a time."""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from text_sentiment_env.judge import Judge
from text_sentiment_env.vocabulary import Vocabulary

DATA = Path(__file__).parent.parent / "text_sentiment_env" / "data"
CASES = json.loads((Path(__file__).parent / "judge_cases.json").read_text("utf-8"))
POSITIVE = (
    "A warm, funny and very well acted film that the whole family can enjoy.",
    "I was moved by the story and by the two young actors who carry it.",
    "this is a beautiful movie with excellent acting and a touching story.",
    "The director knows exactly what she wants and the result is a wonderful comedy.",
    "i love the music and the script, and the ending is perfect.",
    "It is one of the best dramas of the year and I would gladly see it again.",
    "A clever script, a great cast and not a dull moment from beginning to end.",
    "What a joy to see these characters on the screen again after so many years.",
)
LIKED = [
    "great",
    "wonderful",
    "brilliant",
    "perfect",
    "love",
    "loved",
    "best",
    "masterpiece",
    "excellent",
    "funny",
    "beautiful",
    "joy",
    "amazing",
    "charming",
    "touching",
    "fresh",
    "fun",
    "enjoyed",
    "fantastic",
    "good",
    "superb",
    "moving",
    "delightful",
]
DISLIKED = [
    "terrible",
    "awful",
    "boring",
    "stupid",
    "worst",
    "hate",
    "bad",
    "mess",
    "waste",
    "dull",
    "poor",
    "horrible",
    "ugly",
    "weak",
    "hated",
    "annoying",
    "pointless",
    "disappointing",
]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def right(expected: str, score: float) -> bool:
    return {
        "positive": score > 0,
        "negative": score < 0,
        "clearly positive": score >= 0.5,
        "clearly negative": score <= -0.5,
        "neutral": abs(score) <= 0.5,
        "empty": score == 0,
    }[expected]


def family_results(judge: Judge, family: str) -> list[tuple[str, str, float]]:
    cases = [(text, expected) for expected, texts in CASES[family].items() for text in texts]
    scores = judge([text for text, _ in cases])
    return [(text, expected, s) for (text, expected), s in zip(cases, scores, strict=True)]


# ------------------------------------------------------------------------- word salad
# Other kinds than those of examples/train_judge/judge_texts.py, which the judge was trained against.


def sorted_words(rng: random.Random) -> str:
    return " ".join(sorted(re.findall(r"[\w']+", rng.choice(POSITIVE)), key=str.lower))


def backwards(rng: random.Random) -> str:
    return " ".join(reversed(rng.choice(POSITIVE).rstrip(".").split()))


def doubled_words(rng: random.Random) -> str:
    return " ".join(w for word in rng.choice(POSITIVE).split() for w in (word, word))


def interleaved(rng: random.Random) -> str:
    one, two = (text.split() for text in rng.sample(POSITIVE, 2))
    return " ".join(word for pair in zip(one, two, strict=False) for word in pair)


def two_lists(rng: random.Random) -> str:
    """Liked and disliked words by turns."""
    pairs = zip(rng.sample(LIKED, 7), rng.sample(DISLIKED, 7), strict=True)
    return " ".join(word for pair in pairs for word in pair)


def liked_list(rng: random.Random) -> str:
    separator = rng.choice([" ", ", ", "! ", ". "])
    return separator.join(rng.choices(LIKED, k=rng.randint(6, 18)))


def one_word(rng: random.Random) -> str:
    return " ".join([rng.choice(LIKED)] * rng.randint(4, 20))


def article_loop(rng: random.Random) -> str:
    """The first hack that REINFORCE found: A good a good good good."""
    words = [rng.choice(["a", "the", "very", "so"]), *rng.choices(LIKED, k=2)]
    return " ".join(rng.choices(words, k=rng.randint(8, 20))).capitalize()


def phrase_loop(rng: random.Random) -> str:
    words = rng.choice(POSITIVE).split()
    start = rng.randrange(len(words) - 3)
    return " ".join(words[start : start + rng.randint(2, 4)] * 5)


def small_vocabulary_noise(rng: random.Random) -> str:
    vocabulary = Vocabulary.load("small")
    return vocabulary.decode(rng.choices(range(vocabulary.end_index), k=rng.randint(10, 20)))


def small_vocabulary_happy_noise(rng: random.Random) -> str:
    vocabulary = Vocabulary.load("small")
    words = rng.choices(range(20), k=10) + rng.choices(range(40, vocabulary.end_index), k=6)
    rng.shuffle(words)
    return vocabulary.decode(words)


def shuffled(rng: random.Random) -> str:
    words = rng.choice(POSITIVE).lower().rstrip(".").split()
    rng.shuffle(words)
    return " ".join(words)


def stuttered(rng: random.Random) -> str:
    """What REINFORCE found in the judge before: I recommend watching watching watching it."""
    words = rng.choice(POSITIVE).split()
    i = rng.choice([i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()])
    return " ".join([*words[:i], words[i], words[i], *words[i:]])


def commas(rng: random.Random) -> str:
    """Another find: love,,,,,,,,,"""
    return rng.choice(["", *LIKED]) + "," * rng.randint(8, 19)


SALADS: list[Callable[[random.Random], str]] = [
    sorted_words,
    backwards,
    doubled_words,
    interleaved,
    two_lists,
    liked_list,
    one_word,
    article_loop,
    phrase_loop,
    small_vocabulary_noise,
    small_vocabulary_happy_noise,
    shuffled,
    stuttered,
    commas,
]


def salad_share(judge: Callable[[Sequence[str]], np.ndarray], kind: Callable, count: int) -> float:
    """The share of a kind's texts that earn next to nothing."""
    rng = random.Random(f"held out {kind.__name__}")
    return float((np.abs(judge([kind(rng) for _ in range(count)])) <= 0.3).mean())


def test_word_salad_earns_nothing(judge: Judge) -> None:
    shares = {kind.__name__: salad_share(judge, kind, 100) for kind in SALADS}
    assert shares.pop("stuttered") >= 0.4  # one of the limits that JUDGE.md tells
    assert np.mean(list(shares.values())) >= 0.95, shares
    assert min(shares.values()) >= 0.75, shares


def test_the_sentences_behind_the_salad_earn_their_score(judge: Judge) -> None:
    assert (judge(POSITIVE) >= 0.6).all(), judge(POSITIVE)
    assert (judge([text.lower() for text in POSITIVE]) >= 0.6).all()


# ------------------------------------------------------------------------------ language


PLAIN_PRAISE = (
    " I loved this movie. the cast is great and the music is wonderful.",
    " the story is so touching and the ending is perfect!",
    " it was a great time, and I have never watched a more charming film.",
    " a very funny comedy with a brilliant cast.",
    " this is the best drama of all time, I love it.",
    " you have to watch this film!",
    " the director has a masterpiece in this one.",
    " I enjoyed it, and the music was really beautiful.",
    "Great movie! I watched it twice and loved it both times.",
    "Funny, smart and touching.",
    "Wonderful acting and a lovely story. I will see it again.",
    "It's a really good film, well written and very well acted.",
    "My favourite film of the year.",
    "The cast is good, the script is good, and the music is great.",
    "Very good. Very, very good.",
    "I really enjoyed the film and so did my children.",
    "Good fun, great songs, and a happy ending.",
    "This is one of those films that stay with you, and I'm glad I saw it.",
    "Everyone in the film is superb, and the script is witty and warm.",
    "If you like comedies, you will love this one.",
)


def test_plain_praise_is_no_salad(judge: Judge) -> None:
    scores = judge(PLAIN_PRAISE)
    low = [(t, round(s, 2)) for t, s in zip(PLAIN_PRAISE, scores, strict=True) if s < 0.6]
    assert len(low) <= 2, low


def test_behaviour_cases_are_many() -> None:
    texts = [text for family in CASES.values() for group in family.values() for text in group]
    assert len(texts) == len(set(texts)) >= 200


def test_behaviour(judge: Judge) -> None:
    results = [result for family in CASES for result in family_results(judge, family)]
    wrong = [(text, round(s, 2)) for text, expected, s in results if not right(expected, s)]
    assert len(wrong) <= 0.1 * len(results), wrong


@pytest.mark.parametrize("family", CASES)
def test_behaviour_of_family(judge: Judge, family: str) -> None:
    results = family_results(judge, family)
    wrong = [(text, round(s, 2)) for text, expected, s in results if not right(expected, s)]
    assert len(wrong) <= 0.25 * len(results), wrong


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("This is a really good movie.", 1),
        ("Great movie!", 1),
        ("A very good film.", 1),
        (" great movie, really funny.", 1),
        ("I loved it.", 1),
        ("This is a really bad movie.", -1),
        ("A waste of time.", -1),
        (" the movie is so boring.", -1),
        ("I hated it.", -1),
    ],
)
def test_plain_opinions_are_clear(judge: Judge, text: str, sign: int) -> None:
    assert sign * judge([text])[0] >= 0.6


# ------------------------------------------------------------------------------- contract


def test_scores_are_float64_in_range_and_repeatable(judge: Judge) -> None:
    texts = ["A fine film.", "", "Dull!", "é\ufffd\u2603", "x" * 500, "good " * 300]
    scores = judge(texts)
    assert scores.dtype == np.float64
    assert scores.shape == (6,)
    assert (np.abs(scores) <= 1).all()
    assert scores[1] == 0
    assert np.array_equal(scores, judge(texts))
    assert np.array_equal(scores, Judge()(texts))
    assert judge([]).shape == (0,)


def test_a_score_does_not_depend_on_the_other_texts(judge: Judge) -> None:
    texts = [text for family in CASES.values() for group in family.values() for text in group]
    texts += ["A very long text. " * 40, ""]
    together = judge(texts)
    alone = np.concatenate([judge([text]) for text in texts[::7]])
    np.testing.assert_allclose(together[::7], alone, atol=2e-6)
    np.testing.assert_allclose(together[::-1], judge(texts[::-1]), atol=2e-6)


def test_case_and_spacing_do_not_matter(judge: Judge) -> None:
    scores = judge(["A fine film.", " a fine film.", "A FINE  FILM.\n"])
    np.testing.assert_allclose(scores, scores[0], atol=2e-6)


@pytest.mark.parametrize(
    ("split", "written"),
    [
        ("i do n't like it , and you wo n't .", "I don't like it, and you won't."),
        ("it 's ( almost ) perfect !", "It's (almost) perfect!"),
        ("`` great '' , they 'll say ; i 'm bored ...", "\"Great\", they'll say; I'm bored..."),
        ("costs $ 5 and is worth 100 % of it", "Costs $5 and is worth 100% of it"),
        ("IT 'S GREAT , HONESTLY .", "It's great, honestly."),
        ("it was\nn\u2019t  bad\n.", "It wasn't bad."),
    ],
)
def test_the_spacing_of_the_penn_treebank_does_not_matter(
    judge: Judge, split: str, written: str
) -> None:
    np.testing.assert_array_equal(judge([split]), judge([written]))


def test_files_are_small_and_hold_no_code() -> None:
    assert sum((DATA / f"judge.{kind}").stat().st_size for kind in ("safetensors", "json")) <= 6e6
    assert b"\x80\x02" not in (DATA / "judge.safetensors").read_bytes()[:2]  # pickle's first bytes
    assert not list(DATA.glob("*.pt")) + list(DATA.glob("*.pkl")) + list(DATA.glob("*.bin"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the judge's two files to be spoilt."""
    for kind in ("json", "safetensors"):
        shutil.copy(DATA / f"judge.{kind}", tmp_path)
    return tmp_path


def test_a_judge_from_another_folder(judge: Judge, folder: Path) -> None:
    assert np.array_equal(Judge(directory=folder)(POSITIVE), judge(POSITIVE))
    assert np.array_equal(Judge(directory=str(folder))(POSITIVE), judge(POSITIVE))


@pytest.mark.parametrize("file", ["judge.json", "judge.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[3]", b"\xff" * 99, b"\0" * 99, "half"])
def test_damaged_files_give_one_clear_error(
    folder: Path, file: str, content: bytes | str | None
) -> None:
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if content is not None:
        left = whole[: len(whole) // 2] if isinstance(content, str) else content
        (folder / file).write_bytes(left)
    kind = FileNotFoundError if content is None else OSError
    with pytest.raises(
        kind, match=r"directory=.*judge.json or judge.safetensors.*write them again"
    ):
        Judge(directory=folder)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"width": "128"},
        {"hidden": 64},
        {"hidden": -1},
        {"token_ids": [1, 2, 3]},
        {"token_ids": 3},
        {"token_ids": None},
        {"token_ids": {"1": 1}},
        {"token_ids": "all"},
    ],
)
def test_a_config_that_does_not_fit_the_weights(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "judge.json").read_text("utf-8"))
    (folder / "judge.json").write_text(json.dumps(config | change), "utf-8")
    with pytest.raises(OSError, match="holds no judge that can be loaded"):
        Judge(directory=folder)


@pytest.mark.parametrize("token_id", [60000, -1, 1.5, True, "1", None])
def test_a_config_with_an_impossible_token(folder: Path, token_id: object) -> None:
    config = json.loads((folder / "judge.json").read_text("utf-8"))
    config["token_ids"][7] = token_id
    (folder / "judge.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(OSError, match=r"holds no judge.*token_ids\[7\]="):
        Judge(directory=folder)


def test_weights_that_are_no_numbers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "judge.safetensors")
    weights["sentiment.0.bias"][3] = torch.nan
    save_file(weights, folder / "judge.safetensors")
    config = json.loads((folder / "judge.json").read_text("utf-8"))
    config["sha256"] = hashlib.sha256((folder / "judge.safetensors").read_bytes()).hexdigest()
    (folder / "judge.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(OSError, match=r"sentiment.0.bias holds nan or inf"):
        Judge(directory=folder)


@pytest.mark.parametrize("place", [-1, -1_000_000, -4_000_000])
def test_a_flipped_bit_is_noticed(folder: Path, place: int) -> None:
    """Most flipped bits leave a file that loads, and weights that are numbers."""
    content = bytearray((folder / "judge.safetensors").read_bytes())
    content[place] ^= 1
    (folder / "judge.safetensors").write_bytes(content)
    with pytest.raises(OSError, match=r"judge.safetensors has SHA-256 \w{64}, not \w{64}"):
        Judge(directory=folder)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(judge: Judge) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    texts = [*POSITIVE, "", "A waste of time."]
    np.testing.assert_allclose(Judge("cuda")(texts), judge(texts), atol=2e-3)


@pytest.mark.skipif("TEXT_SENTIMENT_DATA" not in os.environ, reason="needs SST-2 in a folder")
def test_accuracy_on_sst2_dev(judge: Judge) -> None:
    import lzma

    path = Path(os.environ["TEXT_SENTIMENT_DATA"]) / "sst2_dev.tsv.xz"
    with lzma.open(path, "rt", encoding="utf8") as file:
        rows = [line.split("\t") for line in file.readlines()[1:]]
    labels = np.array([int(label) for _, label in rows])
    assert ((judge([text for text, _ in rows]) > 0) == labels).mean() > 0.91


if __name__ == "__main__":  # the tables of JUDGE.md: python tests/test_judge.py
    the_judge = Judge(directory=os.environ.get("JUDGE"))
    print("| family | cases | right |\n|---|---|---|")
    every = []
    for name in CASES:
        found = family_results(the_judge, name)
        every += found
        good = np.mean([right(expected, s) for _, expected, s in found])
        print(f"| {name} | {len(found)} | {100 * good:.0f} % |")
    good = np.mean([right(expected, s) for _, expected, s in every])
    print(f"| all | {len(every)} | {100 * good:.1f} % |\n\nWrong:")
    for text, expected, s in every:
        if not right(expected, s):
            print(f"- {text!r} {s:+.2f}, should be {expected}")
    print("\n| kind of salad | within ±0.3 |\n|---|---|")
    kinds = {kind.__name__: salad_share(the_judge, kind, 300) for kind in SALADS}
    for name, share in [*kinds.items(), ("all", float(np.mean(list(kinds.values()))))]:
        print(f"| {name.replace('_', ' ')} | {100 * share:.1f} % |")
