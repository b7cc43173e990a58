"""tianshou on the environment, through the wrapper that gives it the same info keys at every step."""

import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import letters

from text_sentiment_env.wrappers import InfoAtEveryStep

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def make(**arguments):
    return gym.make("TextSentiment-v0", sentiment_model=letters, max_tokens=4, **arguments)


def test_the_wrapper_changes_nothing_but_missing_keys():
    arguments = {"extra_terms": {"film": lambda texts: [0.5] * len(texts)}}
    plain, wrapped = make(**arguments), InfoAtEveryStep(make(**arguments))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        check_env(wrapped, skip_render_check=True)
    for seed in range(10):
        assert (plain.reset(seed=seed)[0] == wrapped.reset(seed=seed)[0]).all()
        plain.action_space.seed(seed)
        over, keys = False, set()
        while not over:
            action = plain.action_space.sample()
            obs, reward, over, _, info = plain.step(action)
            *step, filled = wrapped.step(action)
            assert (step[0] == obs).all()
            assert step[1:] == [reward, over, False]
            expected = info or dict.fromkeys(filled, 0) | {"text": ""}
            assert filled == expected
            keys.add(tuple(sorted(filled)))
        assert len(keys) == 1


def test_the_wrapper_refuses_other_environments():
    with pytest.raises(ValueError, match="must be TextSentiment-v0"):
        InfoAtEveryStep(gym.make("CartPole-v1"))


def test_tianshou_learns(capsys):
    pytest.importorskip("tianshou", reason='pip install -e ".[plug]" brings it')
    import plug_tianshou

    reward = plug_tianshou.main(["--epochs", "2", "--steps", "4096"])
    assert 0.3 < reward <= 1  # random texts get 0.2
    assert "mean reward of 100 fresh texts" in capsys.readouterr().out


def test_tianshou_needs_the_wrapper(monkeypatch):
    buffer_base = pytest.importorskip(
        "tianshou.data.buffer.buffer_base", reason='pip install -e ".[plug]" brings it'
    )
    import plug_tianshou

    monkeypatch.setattr(plug_tianshou, "InfoAtEveryStep", lambda env: env)
    with pytest.raises(buffer_base.MalformedBufferError):
        plug_tianshou.main(["--epochs", "1", "--steps", "256", "--num-envs", "4"])
