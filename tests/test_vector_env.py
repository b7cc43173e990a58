import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from helpers import Recorder, letters
from hypothesis import given, settings
from hypothesis import strategies as st

from text_sentiment_env import TextSentimentEnv, TextSentimentVectorEnv

VOCABULARY = [" good", " bad", " film", " not"]
END = 4
MODES = list(AutoresetMode)


def arguments(**overrides):
    return {
        "vocabulary": VOCABULARY,
        "sentiment_model": letters,
        "prompts": ["good", "not bad film", " bad"],
        "max_tokens": 4,
        "repetition_penalty": 0.3,
        "extra_terms": {"commas": lambda texts: np.array([len(t) for t in texts]) / 100},
        **overrides,
    }


def rollout(envs, actions, seed):
    """All that a reset and the steps return; ended rows are reset by hand in mode DISABLED."""
    yield envs.reset(seed=seed)
    over = None
    for action in actions:
        if over is not None and over.any() and envs.metadata["autoreset_mode"] is MODES[2]:
            yield envs.reset(options={"reset_mask": over})
        result = envs.step(action)
        over = result[2]
        yield result


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    mode=st.sampled_from(MODES),
    shaping=st.booleans(),
    num_envs=st.integers(1, 5),
    seed=st.integers(0, 2**30),
)
def test_equals_gymnasiums_own_vectorization(data, mode, shaping, num_envs, seed):
    """Rows, rewards, ends and infos, in each mode, are those of single environments side by side."""
    keywords = arguments(shaping=shaping)
    ours = TextSentimentVectorEnv(num_envs, autoreset_mode=mode, **keywords)
    sync = SyncVectorEnv([lambda: TextSentimentEnv(**keywords)] * num_envs, autoreset_mode=mode)
    row = st.lists(st.integers(0, END), min_size=num_envs, max_size=num_envs).map(np.array)
    actions = data.draw(st.lists(row, min_size=1, max_size=14))
    for a, b in zip(rollout(ours, actions, seed), rollout(sync, actions, seed), strict=True):
        assert type(a[-1]) is dict
        assert a[-1].keys() == b[-1].keys()
        assert same(a, b)


def same(a, b):
    """Equal to the bit, by the rules of NumPy; objects (texts, final observations) one by one."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and a.dtype == object:
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b


def test_row_i_is_the_single_env_seeded_s_plus_i():
    envs = gym.make_vec("TextSentiment-v0", num_envs=3, **arguments())
    observations, infos = envs.reset(seed=7)
    for row in range(3):
        env = gym.make("TextSentiment-v0", **arguments())
        observation, info = env.reset(seed=7 + row)
        assert observation.tolist() == observations[row].tolist()
        assert info["prompt"] == infos["prompt"][row]


def test_one_judge_call_a_step():
    judge = Recorder()
    envs = TextSentimentVectorEnv(4, **arguments(sentiment_model=judge))
    envs.reset(seed=0)
    envs.step([END, END, 0, END])
    assert [len(call) for call in judge.calls] == [3]
    envs.step([0, 0, 1, 0])
    assert len(judge.calls) == 1


@pytest.mark.parametrize("mode", [m.value for m in MODES] + MODES)
def test_autoreset_mode_by_enum_or_string(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keywords = arguments(autoreset_mode=mode)
        envs = gym.make_vec("TextSentiment-v0", num_envs=2, **keywords)
    assert envs.metadata["autoreset_mode"] is AutoresetMode(mode)
    assert "autoreset_mode" not in TextSentimentVectorEnv.metadata


def test_prompts_by_option():
    envs = TextSentimentVectorEnv(3, **arguments())
    _, infos = envs.reset(options={"prompt": "good"})
    assert infos["prompt"].tolist() == ["good"] * 3
    _, infos = envs.reset(options={"prompt": ["good", " bad", "not bad film"]})
    assert infos["prompt"].tolist() == ["good", " bad", "not bad film"]


def test_reset_of_some_rows_leaves_the_others():
    envs = TextSentimentVectorEnv(2, autoreset_mode="Disabled", **arguments(prompts=None))
    envs.reset(seed=0)
    envs.step([0, END])
    with pytest.raises(ResetNeeded, match=r"rows \[1\].*reset_mask"):
        envs.step([0, 0])
    mask = np.array([False, True])
    observations, infos = envs.reset(options={"reset_mask": mask})
    assert observations.tolist() == [[0, 5, 5, 5], [5, 5, 5, 5]]
    assert infos["_prompt"].tolist() == [False, True]
    assert envs.step([1, 2])[0].tolist() == [[0, 1, 5, 5], [2, 5, 5, 5]]


def test_every_call_returns_new_arrays():
    envs = TextSentimentVectorEnv(2, **arguments())
    first, _ = envs.reset(seed=0)
    kept = first.copy()
    second = envs.step([0, 1])
    assert np.array_equal(first, kept)
    second[0][:] = 0
    assert not np.array_equal(envs.step([0, 1])[0], second[0])


def test_seeds_and_generators():
    envs = TextSentimentVectorEnv(2, **arguments())
    envs.reset(seed=[5, None])
    assert envs.np_random_seed[0] == 5
    first, second = envs.np_random
    state = first.bit_generator.state
    envs.reset(seed=[None, 5])
    assert second is not envs.np_random[1]
    single = TextSentimentEnv(**arguments())
    single.reset(seed=5)
    assert single.np_random.bit_generator.state == state == envs.np_random[1].bit_generator.state


def test_pickle():
    envs = TextSentimentVectorEnv(2, **arguments(sentiment_model="vader", extra_terms=None))
    envs.reset(seed=1)
    copy = pickle.loads(pickle.dumps(envs))
    for _ in range(6):
        assert data_equivalence(envs.step([0, END]), copy.step([0, END]), exact=True)


def test_record_episode_statistics():
    envs = RecordEpisodeStatistics(TextSentimentVectorEnv(2, **arguments(prompts=None)))
    envs.reset(seed=0)
    *_, infos = envs.step([END, 0])
    assert infos["episode"]["l"][0] == 1
    assert infos["_episode"].tolist() == [True, False]


def test_render(capsys):
    envs = TextSentimentVectorEnv(2, render_mode="ansi", **arguments(prompts=None))
    envs.reset()
    envs.step([0, 1])
    assert envs.render() == (" good", " bad")
    assert TextSentimentVectorEnv(2, **arguments()).render() is None
    envs = TextSentimentVectorEnv(2, render_mode="human", **arguments(prompts=None))
    envs.reset()
    envs.step([0, END])
    assert "[reward" in capsys.readouterr().out


def test_render_before_reset_shows_nothing_from_memory():
    # Memory that held something else is likely, but not certain, to be used again.
    junk = [np.zeros((64, 20), np.int64) for _ in range(50)]
    del junk
    envs = TextSentimentVectorEnv(64, render_mode="ansi", sentiment_model=letters)
    assert envs.render() == ("",) * 64


def test_both_environments_show_their_task():
    for env in (TextSentimentEnv(**arguments()), TextSentimentVectorEnv(2, **arguments())):
        assert env.vocabulary.decode([0, 1]) == " good bad"
        assert env.max_tokens == 4
        assert env.prompts == ["good", "not bad film", " bad"]


def test_action_masks():
    assert TextSentimentVectorEnv(2, **arguments()).action_masks().shape == (2, 5)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0], r"must be 2 integers.*shape \(1,\)"),
        ([0.0, 1.0], "float64"),
        ([0, 5], r"actions\[1\]=5 is out of range"),
        ([-1, 0], r"actions\[0\]=-1"),
    ],
)
def test_bad_actions(actions, message):
    envs = TextSentimentVectorEnv(2, **arguments())
    envs.reset()
    with pytest.raises(ValueError, match=message):
        envs.step(actions)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ({"seed": [1]}, "seed"),
        ({"options": {"prompt": ["good"]}}, r"options\['prompt'\]"),
        ({"options": {"prompt": 3}}, r"options\['prompt'\]"),
        ({"options": {"reset_mask": [1, 0]}}, "reset_mask"),
        ({"options": {"reset_mask": [False, False]}}, "reset_mask"),
        ({"options": {"reset_mask": [[True], []]}}, "reset_mask"),
        ({"options": {"reset_mask": "ab"}}, "reset_mask"),
        ({"options": {"mask": [1, 0]}}, "unknown"),
    ],
)
def test_bad_resets(reset, message):
    envs = TextSentimentVectorEnv(2, **arguments())
    envs.reset()
    with pytest.raises(ValueError, match=message):
        envs.reset(**reset)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_step_that_failed_in_the_judge_ends_all_texts(mode):
    fails = [False]

    def judge(texts):
        if fails[0]:
            raise ConnectionError("the judge is down")
        return letters(texts)

    envs = TextSentimentVectorEnv(2, autoreset_mode=mode, **arguments(sentiment_model=judge))
    envs.reset(seed=0)
    end, fails[0] = envs.vocabulary.end_index, True
    with pytest.raises(ConnectionError):
        envs.step([end, 0])
    fails[0] = False
    with pytest.raises(ResetNeeded, match=r"call reset\(\) for all rows"):
        envs.step([0, 0])
    envs.reset()
    assert envs.step([end, 0])[2].tolist() == [True, False]


def test_other_bad_input():
    with pytest.raises(ValueError, match="num_envs=0"):
        TextSentimentVectorEnv(0)
    with pytest.raises(ValueError, match="autoreset_mode='Sometimes' must be one of 'NextStep'"):
        TextSentimentVectorEnv(2, autoreset_mode="Sometimes")
    with pytest.raises(TypeError, match="vocab"):
        TextSentimentVectorEnv(2, vocab="small")
    envs = TextSentimentVectorEnv(2, **arguments())
    with pytest.raises(ResetNeeded):
        envs.step([0, 0])
    with pytest.raises(ResetNeeded, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
