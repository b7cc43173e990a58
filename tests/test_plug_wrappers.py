"""Gymnasium's own wrappers, in each autoreset mode."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, TransformObservation, vector
from helpers import letters
from stable_baselines3 import PPO

ARGUMENTS = {
    "vocabulary": [" good", " bad", " film", " not"],
    "sentiment_model": letters,
    "max_tokens": 4,
    "prompts": ["good", "not bad"],
}
END = 4


def make_vec(mode, num_envs=3):
    return gym.make_vec("TextSentiment-v0", num_envs, autoreset_mode=mode, **ARGUMENTS)


def play(envs, steps=40):
    """Random tokens; what each step returned, whatever the autoreset mode."""
    disabled = envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(steps):
        *step, infos = envs.step(envs.action_space.sample())
        yield *step, infos
        ended = step[2] | step[3]
        if disabled and ended.any():
            envs.reset(options={"reset_mask": ended})


def test_record_episode_statistics_of_the_single_env():
    env = RecordEpisodeStatistics(gym.make("TextSentiment-v0", **ARGUMENTS))
    env.reset(seed=0)
    total, over, steps = 0.0, False, 0
    while not over:
        _, reward, over, _, info = env.step(steps)
        total, steps = total + reward, steps + 1
    assert info["episode"]["r"] == pytest.approx(total)
    assert info["episode"]["l"] == steps
    assert info["text"]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_record_episode_statistics(mode):
    envs = vector.RecordEpisodeStatistics(make_vec(mode))
    sums, lengths, seen = np.zeros(3), np.zeros(3, int), 0
    over = np.zeros(3, bool)
    for _, rewards, terminated, _, infos in play(envs):
        acting = ~over if mode is AutoresetMode.NEXT_STEP else np.ones(3, bool)
        sums += rewards * acting
        lengths += acting
        if terminated.any():
            assert (infos["_episode"] == terminated).all()
            np.testing.assert_allclose(infos["episode"]["r"][terminated], sums[terminated])
            assert (infos["episode"]["l"][terminated] == lengths[terminated]).all()
        seen += terminated.sum()
        sums[terminated], lengths[terminated] = 0, 0
        over = terminated
    assert seen > 20


@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_normalize_reward(mode):
    """The same episodes, rewards divided by one running deviation."""
    plain, scaled = make_vec(mode), vector.NormalizeReward(make_vec(mode), gamma=1.0)
    for a, b in zip(play(plain), play(scaled), strict=True):
        assert (a[0] == b[0]).all()
        assert (a[2] == b[2]).all()
        assert (np.sign(a[1]) == np.sign(b[1])).all()
        assert np.isfinite(b[1]).all()
    assert scaled.return_rms.var > 0


def as_multi_discrete(env):
    """One line for agents that one-hot encode; the ids stay as they are."""
    return TransformObservation(env, lambda obs: obs, spaces.MultiDiscrete([END + 2] * 6))


@pytest.mark.parametrize("mode", AutoresetMode)
def test_multi_discrete_view_of_vectorized_single_envs(mode):
    view = gym.make_vec(
        "TextSentiment-v0",
        3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        wrappers=[as_multi_discrete],
        **ARGUMENTS,
    )
    for (obs, *_), (plain, *_) in zip(play(view), play(make_vec(mode)), strict=True):
        assert obs in view.observation_space
        assert (obs == plain).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_multi_discrete_view_of_the_native_vector_env(mode):
    """Gymnasium's vector observation wrappers know no SAME_STEP, whatever the environment."""
    space = spaces.MultiDiscrete([END + 2] * 6)
    view = vector.VectorizeTransformObservation(
        make_vec(mode), TransformObservation, func=lambda obs: obs, observation_space=space
    )
    for (obs, *_), (plain, *_) in zip(play(view), play(make_vec(mode)), strict=True):
        assert obs in view.observation_space
        assert (obs == plain).all()


def test_multi_discrete_view_trains_a_stock_mlp():
    env = as_multi_discrete(gym.make("TextSentiment-v0", **ARGUMENTS))
    assert PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1).learn(16)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_gymnasiums_own_vectorization_takes_single_env_wrappers(num_envs):
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs,
        vectorization_mode="sync",
        wrappers=[RecordEpisodeStatistics],
        **ARGUMENTS,
    )
    envs.reset(seed=0)
    *_, infos = envs.step(np.full(num_envs, END))
    assert (infos["episode"]["l"] == 1).all()
