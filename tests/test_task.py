"""The rules on their own: rows of observations in, rewards and infos out."""

import pickle

import numpy as np
import pytest
from helpers import Recorder, letters

from text_sentiment_env import Vocabulary
from text_sentiment_env.task import TextSentimentTask

VOCABULARY = [" good", " bad", " film", " not"]  # with <|endoftext|>: actions 0 to 4, PAD 5
END, PAD = 4, 5


def make(**arguments):
    return TextSentimentTask(
        **{"vocabulary": VOCABULARY, "sentiment_model": letters, "max_tokens": 4, **arguments}
    )


def generators(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def test_spaces_follow_vocabulary_prompts_and_limit():
    task = make(prompts=["good film", "not"], max_tokens=3)
    assert task.action_space.n == 5
    assert task.observation_space.shape == (5,)
    assert task.observation_space.dtype == np.int64
    assert (task.observation_space.low.min(), task.observation_space.high.max()) == (0, PAD)


def test_start_pads_to_the_longest_prompt():
    task = make(prompts=["good film", "not"])
    texts, tokens, lengths = task.start(generators(0, 0), ["not", "good film"])
    assert texts.tolist() == ["not", "good film"]
    assert tokens.tolist() == [[3, PAD], [0, 2]]
    assert lengths.tolist() == [1, 2]


def test_one_prompt_draws_nothing():
    generator = np.random.default_rng(3)
    state = generator.bit_generator.state
    make(prompts=["good"]).start([generator])
    assert generator.bit_generator.state == state


def test_a_file_of_prompts_is_split_at_the_ends_of_its_lines_alone(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("a\u2028b\r\nc\x0cd\re\x85f\n\n g \n".encode())
    task = make(prompts=file, vocabulary="reviews")
    assert task.prompts == ["a\u2028b", "c\x0cd", "e\x85f", " g"]


def test_given_prompts_draw_nothing_and_the_others_do():
    task = make(prompts=["good", "bad", "film", "not"])
    alone = task.start(generators(7))[0][0]
    first, second = generators(1, 7)
    state = first.bit_generator.state
    texts, *_ = task.start([first, second], ["bad", None])
    assert texts.tolist() == ["bad", alone]
    assert first.bit_generator.state == state


def test_a_prompt_that_is_none_of_the_list():
    task = make(prompts=["good film"])
    _, tokens, lengths = task.start(generators(0), ["not"])
    assert tokens.tolist() == [[3, PAD]]
    assert lengths.tolist() == [1]
    for prompt, message in [
        ("good film not", "has 3 tokens.*room for 2.*shorten"),
        ("zebra", "zebra.*outside this vocabulary"),
        (3, r"options\['prompt'\]=3 must be a string"),
        ("\ud800", r"options\['prompt'\]='\\ud800'.*surrogate"),
    ]:
        with pytest.raises(ValueError, match=message):
            task.start(generators(0), [prompt])


def test_a_text_ends_at_its_end_token_or_at_the_limit():
    task = make()
    actions, steps = np.array([0, END, 0, END]), np.array([1, 1, 4, 4])
    assert task.ends(actions, steps).tolist() == [False, True, True, True]
    assert not task.ends(0, 3)
    assert task.ends(0, 4)


def test_reward_of_rows_is_the_formula_by_hand():
    task = make(target_length=(2, 2), length_penalty=1.0, repetition_penalty=0.5)
    rows = np.array([[0, 0, 0, END], [1, 2, END, PAD], [END, PAD, PAD, PAD]])
    rewards, terms, info = task.reward(rows, np.zeros(3, np.int64), np.zeros(3))
    assert info["text"].tolist() == [" good good good", " bad film", ""]
    assert info["length"].tolist() == [3, 2, 0]
    assert info["length_penalty"].tolist() == [1 / 4, 0, 2 / 4]
    assert info["repetition_penalty"].tolist() == [0.5 * 1 / 2, 0, 0]
    assert terms == pytest.approx([*letters([" good good good", " bad film"]), 0])
    assert rewards == pytest.approx(terms - info["length_penalty"] - info["repetition_penalty"])


@pytest.mark.parametrize("target", ["positive", "negative"])
@pytest.mark.parametrize("reward_type", ["graded", "binary"])
def test_target_and_type_of_the_sentiment_term(target, reward_type):
    task = make(target=target, reward_type=reward_type, length_penalty=0)
    rows = np.array([[0, END, PAD, PAD], [1, END, PAD, PAD]])
    rewards, _, info = task.reward(rows, np.zeros(2, np.int64), np.zeros(2))
    scores = letters([" good", " bad"])
    assert info["sentiment"] == pytest.approx(scores)  # before target and type
    term = np.sign(scores) if reward_type == "binary" else scores
    assert rewards == pytest.approx(term if target == "positive" else -term)


def test_unfinished_rows_get_the_increment_alone():
    task = make(shaping=True, length_penalty=1.0)
    rows = np.array([[0, PAD, PAD, PAD], [1, END, PAD, PAD]])
    rewards, terms, info = task.reward(
        rows, np.zeros(2, np.int64), np.array([0.25, 0.5]), np.array([False, True])
    )
    assert info["text"].tolist() == [" bad"]
    assert rewards[0] == pytest.approx(terms[0] - 0.25)
    assert rewards[1] == pytest.approx(terms[1] - 0.5 - info["length_penalty"][0])
    rewards, _, info = task.reward(
        rows[:1], np.zeros(1, np.int64), np.zeros(1), np.array([False])
    )  # fmt: skip
    assert info == {}
    assert rewards == pytest.approx(terms[:1])


def test_the_judge_reads_no_blank_text():
    judge = Recorder()
    task = make(sentiment_model=judge, vocabulary=[" good", "\n"])
    rows = np.array([[1, 2, 3, 3], [0, 2, 3, 3], [2, 3, 3, 3]])
    _, _, info = task.reward(rows, np.zeros(3, np.int64), np.zeros(3))
    assert judge.calls == [[" good"]]
    assert info["sentiment"].tolist() == [0, letters([" good"])[0], 0]


def test_scores_rounded_out_of_range_are_clipped():
    task = make(sentiment_model=lambda texts: [1 + 1e-7] * len(texts))
    _, _, info = task.reward(np.array([[0, END, PAD, PAD]]), np.zeros(1, np.int64), np.zeros(1))
    assert info["sentiment"].tolist() == [1.0]


def test_terms_see_finished_texts_alone():
    words = Recorder(lambda texts: [len(text.split()) for text in texts])
    task = make(shaping=True, extra_terms={"words": words})
    rows = np.array([[0, PAD, PAD, PAD], [1, 2, END, PAD]])
    _, _, info = task.reward(rows, np.zeros(2, np.int64), np.zeros(2), np.array([False, True]))
    assert words.calls == [[" bad film"]]
    assert info["words"].tolist() == [2]


@pytest.mark.parametrize("name", ["reward", "kl", "gap", "l", "when", "file"])
def test_terms_take_no_measures_name(name):
    """Else the term's mean would stand for the measure in evaluations or in monitor.csv."""
    with pytest.raises(ValueError, match=name):
        make(extra_terms={name: len})


def test_pickles_hold_no_judge_that_has_a_name():
    task = make(sentiment_model="vader", vocabulary=Vocabulary.load(VOCABULARY))
    copy = pickle.loads(pickle.dumps(task))
    assert "_judge" not in task.__getstate__()
    rows = np.array([[0, END, PAD, PAD]])
    for one, other in zip(
        *(t.reward(rows, np.zeros(1, np.int64), np.zeros(1)) for t in (task, copy)), strict=True
    ):
        np.testing.assert_equal(one, other)
    assert pickle.loads(pickle.dumps(make())).sentiment_model is letters
