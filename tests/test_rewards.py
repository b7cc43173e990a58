"""RewardFunction: the environment's reward for whole texts."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from helpers import letters

from text_sentiment_env import RewardFunction, Vocabulary

WORDS = [" good", " bad", " film", " not"]
CASES = {
    "plain": {},
    "penalties": {"length_penalty": 2.0, "target_length": (2, 3), "repetition_penalty": 0.7},
    "negative": {"target": "negative", "reward_type": "binary"},
    "terms": {"extra_terms": {"film": lambda texts: [text.count("film") for text in texts]}},
    "shaping": {"shaping": True},
}


def play(envs, prompts):
    """One random text a row: its tokens, the sum of its rewards and its info."""
    rows = [[] for _ in prompts]
    sums, ends = np.zeros(len(prompts)), {}
    envs.reset(seed=0, options={"prompt": prompts})
    envs.action_space.seed(0)
    while len(ends) < len(prompts):
        actions = envs.action_space.sample()
        _, rewards, terminated, _, infos = envs.step(actions)
        for row in set(range(len(prompts))) - ends.keys():
            rows[row].append(int(actions[row]))
            sums[row] += rewards[row]
            if terminated[row]:
                names = [name for name in infos if name[0] != "_" and name != "prompt"]
                ends[row] = {name: infos[name][row] for name in names}
    return rows, sums, [ends[row] for row in range(len(prompts))]


@pytest.mark.parametrize("name", CASES)
def test_rewards_are_the_environments(name):
    arguments = {"vocabulary": WORDS, "max_tokens": 5, "sentiment_model": letters} | CASES[name]
    prompts = ["", " good", " not bad"] * 8
    envs = gym.make_vec("TextSentiment-v0", len(prompts), prompts=prompts[:3], **arguments)
    ids, rewards, infos = play(envs, prompts)
    decode, logged, columns = envs.unwrapped.vocabulary.decode, {}, {}
    completions = [decode(row) for row in ids]
    # Trainers may leave what they pad with behind the end.
    padded = [row + [4] * 3 for row in ids]
    reward = RewardFunction(**arguments)
    given = reward(
        prompts, completions, padded, logged.__setitem__, columns.__setitem__, trainer_state=None
    )
    np.testing.assert_allclose(given, rewards, rtol=0, atol=1e-12)
    assert [p + c for p, c in zip(prompts, completions, strict=True)] == [i["text"] for i in infos]
    assert logged.keys() == infos[0].keys() - {"text"}
    for term, mean in logged.items():
        assert mean == pytest.approx(np.mean([info[term] for info in infos]))
    assert columns == {"sentiment": [info["sentiment"] for info in infos]}
    # Without ids the texts are encoded, here into the same tokens.
    assert reward(prompts, completions) == given
    assert all(isinstance(value, float) for value in given)


def test_the_start_token_of_a_prompt_is_no_text():
    reward = RewardFunction(vocabulary=WORDS, sentiment_model=letters)
    assert reward(["<|endoftext|> good"], [" film"]) == reward([" good"], [" film"])


def test_the_bundled_judge_and_model_vocabulary():
    reward = RewardFunction(vocabulary="reviews")
    encode = Vocabulary.load("reviews").encode
    texts = [" is a great pleasure to watch.", " is a dull waste of time."]
    good, bad = reward(["This film"] * 2, texts, [encode(text).tolist() for text in texts])
    assert good > 0.7
    assert bad < -0.7
    assert reward([], [], []) == []
    assert pickle.loads(pickle.dumps(reward))(["This film"], texts[:1]) == pytest.approx([good])


@pytest.mark.parametrize(
    ("prompts", "completions", "ids", "message"),
    [
        ([[{"role": "user", "content": "good"}]], [" film"], [[2]], "chats are not supported"),
        (["good"], [" movie"], None, "outside this vocabulary"),
        (["tea"], [" film"], [[2]], "outside this vocabulary"),
        (["good"], [" film"], [[5]], "hold 5, but the vocabulary's ids are 0 to 4"),
        (["good"], [" film"], [[-1]], "hold -1, but the vocabulary's ids are 0 to 4"),
        (["good"], [" film"], [[2], [2]], "1 prompts and 2 completions"),
        (["good"], [" film"], [[2] * 21], "has 21 tokens, but max_tokens=20"),
    ],
)
def test_errors_say_the_fix(prompts, completions, ids, message):
    reward = RewardFunction(vocabulary=WORDS, sentiment_model=letters)
    with pytest.raises(ValueError, match=message):
        reward(prompts, completions, ids)


def test_what_follows_the_end_is_ignored():
    reward = RewardFunction(vocabulary=WORDS, sentiment_model=letters)
    end = reward.task.vocabulary.end_index
    assert reward(["good"], [""], [[2, end, -100, 99]]) == reward(["good"], [""], [[2]])


def test_a_completions_text_ends_at_its_end_of_text():
    reward = RewardFunction(vocabulary=WORDS, sentiment_model=letters)
    plain, ended = reward([""] * 2, [" good film", " good film<|endoftext|> bad"])
    assert plain == ended


def test_ids_that_are_no_whole_numbers_are_refused():
    reward = RewardFunction(vocabulary=WORDS, sentiment_model=letters)
    with pytest.raises(ValueError, match="completion_ids hold numbers of type float64"):
        reward([""], [" good film"], [[0.7, 1.2]])


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="penalty"):
        RewardFunction(penalty=1)
