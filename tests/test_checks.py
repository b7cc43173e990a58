"""Every argument of the environments: what is nonsense is refused by name, what is right works."""

import math
import sys

import numpy as np
import pytest
from helpers import letters
from hypothesis import given, settings
from hypothesis import strategies as st

from text_sentiment_env import TextSentimentEnv, TextSentimentVectorEnv

VOCABULARY = [" good", " bad", " film", " not"]
SURROGATE = "\ud800"
HUGE = 10**12


def make(**arguments):
    return TextSentimentEnv(**{"vocabulary": VOCABULARY, "sentiment_model": letters, **arguments})


# A value of no type that an argument could want, or a number that none could mean.
NONSENSE = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).filter(lambda x: not 0 <= x <= 1e30),
    st.integers(max_value=-1),
    st.just(HUGE**3),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.sampled_from([object(), Ellipsis, {1, 2}, frozenset("a"), {"a": 1}, [[]], [None], (1, "b")]),
    st.sampled_from([np.array([0.5, 1.0]), np.zeros((2, 2)), np.array("x"), np.float64("nan")]),
    st.text(max_size=3).map(lambda text: "\0" + text + SURROGATE),
)
BOOLEANS = st.sampled_from([True, False])
NUMBERS = st.integers(0, 9) | st.floats(0, 9) | st.sampled_from([np.float32(0.5), np.int64(2)])
LENGTHS = st.tuples(st.integers(0, 9), st.integers(9, 99)) | st.just([0, sys.maxsize])
# For each argument: good values, and wrong ones beside NONSENSE.
VALUES = {
    "vocabulary": (
        st.sampled_from([VOCABULARY, tuple(VOCABULARY), np.array(VOCABULARY)]),
        BOOLEANS | st.sampled_from([None, [], {" good"}, {" good": 1}, b"small", [SURROGATE], "x"]),
    ),
    "max_tokens": (
        st.integers(1, 9) | st.just(np.int32(3)),
        BOOLEANS | st.sampled_from([None, 0, 2.0, "3", HUGE, 10**30]),
    ),
    "prompts": (
        st.sampled_from([None, ["good"], (" bad film", ""), np.array(["not"])]),
        BOOLEANS | st.sampled_from([[], {"good"}, b"good", ["good", 3], [b"good"], [SURROGATE]]),
    ),
    "sentiment_model": (
        st.just(letters),
        BOOLEANS | st.sampled_from([None, 3, "", [letters], "bundle", "vade"]),
    ),
    "reward_type": (
        st.sampled_from(["graded", "binary"]),
        BOOLEANS | st.sampled_from([None, "", 1, ["graded"], np.array(["graded", "binary"])]),
    ),
    "target": (
        st.sampled_from(["positive", "negative"]),
        BOOLEANS | st.sampled_from([None, "POSITIVE", 1, -1, np.array(["positive", "negative"])]),
    ),
    "length_penalty": (NUMBERS, BOOLEANS | st.sampled_from([None, "1", 1e308, 10**400, 1j])),
    "repetition_penalty": (NUMBERS, BOOLEANS | st.sampled_from([None, "1", 1e308, 10**400])),
    "target_length": (
        LENGTHS,
        BOOLEANS | st.sampled_from([None, 5, (5, 3), (1, 2, 3), (0.0, 1.0), (False, True), "01"]),
    ),
    "extra_terms": (
        st.sampled_from([None, {}, {"length of text": lambda texts: [len(t) for t in texts]}]),
        BOOLEANS
        | st.sampled_from([0, (), "", [("a", letters)], {"a": 3}, {"_a": letters}, {3: letters}]),
    ),
    "shaping": (BOOLEANS, st.sampled_from([None, 0, 1, "False", "True", [], np.array([True])])),
    "render_mode": (
        st.sampled_from([None, "ansi"]),
        BOOLEANS | st.sampled_from(["rgb_array", 1, np.array(["ansi", "human"])]),
    ),
    "num_envs": (st.integers(1, 4) | st.just(np.int64(2)), st.sampled_from([None, 0, True, 1.0, HUGE])),
    "autoreset_mode": (st.sampled_from(["NextStep", "SameStep", "Disabled"]), st.sampled_from([None, 1, ""])),
}  # fmt: skip
ONLY_VECTOR = ("num_envs", "autoreset_mode")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_fuzzed_arguments(data):
    """Right arguments play an episode of finite reward; a wrong one is refused by its name."""
    arguments, wrong = {"vocabulary": VOCABULARY, "sentiment_model": letters}, []
    names = data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=5, unique=True))
    for name in names:
        good, bad = VALUES[name]
        if data.draw(st.integers(0, 2), label=f"{name} is wrong if 0") == 0:
            arguments[name] = data.draw(bad | NONSENSE, label=name)
            wrong.append(name)
        else:
            arguments[name] = data.draw(good, label=name)
    vector = any(name in arguments for name in ONLY_VECTOR)
    kind = TextSentimentVectorEnv if vector else TextSentimentEnv
    if wrong:
        with pytest.raises((ValueError, TypeError)) as error:
            kind(**arguments)
        assert any(name in str(error.value) for name in wrong), error.value
        return
    env = kind(**arguments)
    env.reset(seed=0)
    for _ in range(env.max_tokens):
        _, reward, ended, *_ = env.step([0] * env.num_envs if vector else 0)
        assert np.isfinite(np.float32(reward)).all()
    assert np.all(ended)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": ["masterpiece"]}, "'masterpiece' is not one GPT-2 token"),
        ({"vocabulary": {" good"}}, r"vocabulary=\{' good'\}.*order.*list"),
        ({"vocabulary": [" good", 3]}, r"vocabulary\[1\]=3 must be a string"),
        ({"vocabulary": [SURROGATE]}, r"vocabulary\[0\]='\\ud800'.*surrogate"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 2.5}, "max_tokens=2.5"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"max_tokens": HUGE}, r"max_tokens=1000000000000.*[0-9],[0-9]{3} GiB.*smaller"),
        ({"prompts": []}, r"prompts=\[\] holds no prompt"),
        ({"prompts": {"good"}}, r"prompts=\{'good'\}.*order.*list"),
        ({"prompts": ["zebra"]}, "prompts: 'zebra' can't be encoded.*lacks 'z'"),
        ({"prompts": [f"good{SURROGATE}"]}, r"prompts\[0\]='good\\ud800'.*surrogate"),
        ({"prompts": "nowhere.txt"}, "prompts='nowhere.txt' is not a file"),
        ({"prompts": [3]}, r"prompts\[0\]=3 must be a string"),
        ({"reward_type": "sign"}, "reward_type='sign' must be one of 'graded', 'binary'"),
        ({"target": "neutral"}, "target='neutral'"),
        ({"length_penalty": -1}, "length_penalty=-1"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"length_penalty": 1e308}, r"length_penalty=1e\+308 must be"),
        ({"length_penalty": True}, "length_penalty=True"),
        ({"repetition_penalty": "x"}, "repetition_penalty='x'"),
        ({"target_length": (5, 3)}, r"target_length=\(5, 3\)"),
        ({"target_length": 5}, "target_length=5"),
        ({"extra_terms": {"text": letters}}, "extra_terms holds the name 'text'"),
        ({"extra_terms": {"episode": letters}}, "extra_terms holds the name 'episode'"),
        ({"extra_terms": {"update": letters}}, "extra_terms holds the name 'update'"),
        ({"extra_terms": {"v1.5": letters}}, "extra_terms holds the name 'v1.5'"),
        ({"extra_terms": {"fluency": 3}}, "fluency.*callable"),
        ({"extra_terms": 0}, "extra_terms=0 must be"),
        ({"extra_terms": [("a", letters)]}, "extra_terms=.*must be"),
        ({"shaping": "False"}, "shaping='False' must be True or False"),
        ({"sentiment_model": 3}, "sentiment_model=3"),
        ({"sentiment_model": "vade"}, "sentiment_model='vade'.*did you mean 'vader'"),
        ({"sentiment_model": ""}, "sentiment_model=''"),
        ({"render_mode": "rgb_array"}, "render_mode='rgb_array'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_penalties_that_overflow_together():
    """Each is finite; a distant target length makes their product more than a float32 holds."""
    with pytest.raises(ValueError, match=r"length_penalty=1e\+30.*target_length"):
        make(length_penalty=1e30, target_length=(sys.maxsize, sys.maxsize))


def test_rows_that_no_memory_holds():
    with pytest.raises(ValueError, match=r"num_envs=1000000000000.*[0-9],[0-9]{3} GiB.*smaller"):
        TextSentimentVectorEnv(HUGE, sentiment_model=letters)


def test_memory_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.delattr("os.sysconf")
    with pytest.raises(ValueError, match=r"more than this machine's 1,024 GiB"):
        TextSentimentVectorEnv(HUGE, sentiment_model=letters)


@pytest.mark.parametrize(
    "seed", [-1, True, 1.0, "1", b"ab", [1], np.float64(2), np.array(3.0), math.nan, {}]
)
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="seed"):
        make().reset(seed=seed)


@pytest.mark.parametrize(
    "seed", [-1, True, 1.0, "ab", b"ab", bytearray(b"ab"), [1], [1, -2], [1, True], [1, 2.0],
             {1, 2}, {1: 1, 2: 2}, np.array([1.0, 2.0]), np.array(3.0)]
)  # fmt: skip
def test_bad_seeds_of_rows(seed):
    envs = TextSentimentVectorEnv(2, sentiment_model=letters)
    with pytest.raises(ValueError, match="seed"):
        envs.reset(seed=seed)


@pytest.mark.parametrize("seed", [3, np.int64(3), 2**100])
def test_good_seeds(seed):
    prompts = ["good", "bad", "not film", "film"]
    single, rows = make(prompts=prompts), TextSentimentVectorEnv(
        1, vocabulary=VOCABULARY, sentiment_model=letters, prompts=prompts
    )  # fmt: skip
    assert single.reset(seed=seed)[1]["prompt"] == rows.reset(seed=seed)[1]["prompt"][0]
    assert rows.np_random_seed == (int(seed),)
    assert single.np_random_seed == int(seed)
    assert rows.reset(seed=np.array([5]))[1]["prompt"][0] == single.reset(seed=5)[1]["prompt"]


@pytest.mark.parametrize("options", [3, "prompt", ["prompt"], [], 0, {"promt": "good"}, {3: 1}])
@pytest.mark.parametrize("kind", [TextSentimentEnv, TextSentimentVectorEnv])
def test_bad_options(kind, options):
    with pytest.raises(ValueError, match="options"):
        kind(sentiment_model=letters).reset(options=options)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([math.nan], "returned nan for text 0 of 1"),
        ([math.inf], "returned inf"),
        ([0.1, 0.2], r"shape \(2,\) for 1 texts.*\(1,\)"),
        (0.5, r"shape \(\)"),
        ([[0.5], [0.1, 0.2]], "can't be read as an array"),
        (["0.5"], "type <U3.*floats"),
        ([b"0.5"], r"type \|S3.*floats"),
        ([None], "type object.*floats"),
        (None, "type object.*floats"),
        ({}, "type object.*floats"),
        ([0.5j], "type complex128.*floats"),
        ([np.datetime64("2020-01-01")], "datetime64.*floats"),
    ],
)
def test_bad_judges_and_terms(returned, message):
    for name, arguments in [
        ("sentiment_model", {"sentiment_model": lambda texts: returned}),
        (r"extra_terms\['taste'\]", {"extra_terms": {"taste": lambda texts: returned}}),
    ]:
        env = make(**arguments)
        env.reset()
        env.step(0)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            env.step(env.vocabulary.end_index)


@pytest.mark.parametrize(
    ("returned", "message"), [([1.5], r"returned 1.5: .*\[-1, 1\]"), ([-7], "returned -7")]
)
def test_scores_outside_their_range(returned, message):
    env = make(sentiment_model=lambda texts: returned)
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match=f"sentiment_model {message}"):
        env.step(env.vocabulary.end_index)


def test_terms_too_large_for_a_reward():
    env = make(extra_terms={"a": lambda texts: [1e308], "b": lambda texts: [1e308]})
    env.reset()
    with pytest.raises(ValueError, match=r"extra_terms\['a'\] returned 1e\+308"):
        env.step(env.vocabulary.end_index)


def test_a_tensor_that_numpy_cannot_read():
    torch = pytest.importorskip("torch")
    env = make(sentiment_model=lambda texts: torch.zeros(len(texts), dtype=torch.bfloat16))
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match="sentiment_model returned.*float"):
        env.step(env.vocabulary.end_index)


@pytest.mark.parametrize("convert", [list, tuple, np.float32, lambda x: x > 0, np.round])
def test_good_scores_of_other_types(convert):
    env = make(sentiment_model=lambda texts: convert(letters(texts)))
    env.reset()
    env.step(0)
    assert env.step(env.vocabulary.end_index)[4]["sentiment"] == float(
        convert(letters([" good"]))[0]
    )


# ------------------------------------------------------------------------------- the prompts' file


def test_a_byte_order_mark_is_no_part_of_the_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("good film\nnot bad\n", "utf-8-sig")
    assert make(prompts=path).prompts == ["good film", "not bad"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"good film\nnot bad\n" + "très bon\n".encode(encoding))
    with pytest.raises(ValueError, match=r"prompts='.*prompts.txt'.*line 3.*UTF-8"):
        make(prompts=path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n \n", "utf-8")
    with pytest.raises(ValueError, match="prompts.txt' holds no prompt"):
        make(prompts=str(path))


def test_a_directory_and_an_impossible_path(tmp_path):
    for path in (tmp_path, "a\0b", SURROGATE, "x" * 5000):
        with pytest.raises(ValueError, match="prompts=.* is not a file"):
            make(prompts=path)
