import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from helpers import letters
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents import SB3VecEnv
from text_sentiment_env import TextSentimentEnv, TextSentimentVectorEnv

ARGUMENTS = {
    "vocabulary": [" good", " bad", " film", " not"],
    "sentiment_model": letters,
    "prompts": ["good", "not bad film", " bad"],
    "max_tokens": 4,
}
MODES = list(AutoresetMode)


@pytest.mark.parametrize("mode", MODES)
def test_equals_sb3s_dummy_vec_env(mode):
    """Step for step what SB3's own vectorization of the single environment returns."""
    ours = SB3VecEnv(TextSentimentVectorEnv(3, autoreset_mode=mode, **ARGUMENTS))
    theirs = DummyVecEnv([lambda: TextSentimentEnv(**ARGUMENTS)] * 3)
    for env in (ours, theirs):
        env.seed(5)
    assert (ours.reset() == theirs.reset()).all()
    assert ours.reset_infos == theirs.reset_infos
    generator = np.random.default_rng(0)
    for _ in range(60):
        actions = generator.integers(5, size=3)
        a, b = ours.step(actions), theirs.step(actions)
        for x, y in zip(a[:3], b[:3], strict=True):
            assert x.dtype == y.dtype
            assert (x == y).all()
        for x, y in zip(a[3], b[3], strict=True):
            assert x.keys() == y.keys()
            assert (
                x.pop("terminal_observation", 0) == np.asarray(y.pop("terminal_observation", 0))
            ).all()
            assert x == y
            assert {k: type(v) for k, v in x.items()} == {k: type(v) for k, v in y.items()}
        assert ours.reset_infos == theirs.reset_infos


def test_options_and_seeds_are_used_once():
    venv = SB3VecEnv(TextSentimentVectorEnv(3, **ARGUMENTS))
    venv.set_options([{"prompt": "good"}, {}, {"prompt": " bad"}])
    venv.seed(3)
    first = venv.reset()
    assert [info["prompt"] for info in venv.reset_infos][::2] == ["good", " bad"]
    assert any((venv.reset() != first).any() for _ in range(10))


def test_attributes_and_methods_a_row():
    venv = SB3VecEnv(TextSentimentVectorEnv(3, **ARGUMENTS))
    assert [len(v) for v in venv.get_attr("vocabulary")] == [5, 5, 5]
    assert len({id(g) for g in venv.get_attr("np_random")}) == 3
    masks = venv.env_method("action_masks", indices=[0, 2])
    assert [m.shape for m in masks] == [(5,), (5,)]
    assert venv.env_is_wrapped(gym.Wrapper) == [False] * 3
    venv.set_attr("render_mode", "ansi")
    venv.reset()
    assert venv.env_method("render")[0].startswith(" ")


def test_unknown_names_raise_as_sb3_users_expect():
    venv = SB3VecEnv(TextSentimentVectorEnv(3, **ARGUMENTS))
    for call in (venv.get_attr, venv.env_method, lambda name: venv.set_attr(name, 1)):
        with pytest.raises(AttributeError, match="flavour"):
            call("flavour")
    assert not venv.has_attr("flavour")
    with pytest.raises(ValueError, match="share one environment"):
        venv.set_attr("render_mode", "ansi", indices=[0])


def test_vec_monitor_sees_episodes():
    venv = VecMonitor(
        SB3VecEnv(TextSentimentVectorEnv(2, **ARGUMENTS)), info_keywords=("sentiment",)
    )
    venv.reset()
    *_, infos = venv.step(np.array([4, 0]))
    assert infos[0]["episode"]["l"] == 1
    assert "sentiment" in infos[0]["episode"]
    assert "episode" not in infos[1]


def test_an_env_that_does_not_say_how_it_resets():
    envs = TextSentimentVectorEnv(2, **ARGUMENTS)
    envs.metadata = {}
    with pytest.raises(ValueError, match=r"metadata\['autoreset_mode'\]"):
        SB3VecEnv(envs)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_statistics_of_gymnasiums_wrapper_reach_the_rows(mode):
    envs = gym.make_vec(
        "TextSentiment-v0", num_envs=3, autoreset_mode=mode, sentiment_model=letters
    )
    env = SB3VecEnv(RecordEpisodeStatistics(envs))
    env.reset()
    end = envs.unwrapped.vocabulary.end_index
    _, rewards, dones, infos = env.step(np.array([0, end, 0]))
    assert dones.tolist() == [False, True, False]
    assert infos[1]["episode"]["l"] == 1
    assert infos[1]["episode"]["r"] == pytest.approx(rewards[1])
    assert "episode" not in infos[0]


def test_infos_as_a_list_are_refused():
    envs = gym.make_vec("TextSentiment-v0", num_envs=2, sentiment_model=letters)
    with pytest.raises(ValueError, match="take off the wrapper.*DictInfoToList"):
        SB3VecEnv(DictInfoToList(envs)).reset()
