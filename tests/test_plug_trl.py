"""RewardFunction in TRL's own trainers, on the bundled model."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("trl", reason='pip install -e ".[plug]" brings it')
pytest.importorskip("datasets", reason='pip install -e ".[plug]" brings it')

from text_sentiment_env import RewardFunction

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import plug_trl


class Recording(RewardFunction):
    """Keeps the calls of the trainer."""

    calls: list = []

    def __call__(self, prompts, completions, completion_ids, **others):
        rewards = super().__call__(prompts, completions, completion_ids, **others)
        self.calls.append((prompts, completions, completion_ids, rewards))
        return rewards


@pytest.mark.parametrize(
    ("trainer", "prompts"), [("rloo", [""]), ("grpo", ["the movie", "I was", "It"])]
)
def test_trl_trains_on_the_environments_rewards(trainer, prompts, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plug_trl, "RewardFunction", Recording)
    monkeypatch.setattr(Recording, "calls", [])
    sizes = ["--updates", "2", "--rows", "8", "--max-tokens", "6"]
    flags = ["--trainer", trainer, "--out", str(tmp_path), "--prompts", *prompts]
    history = plug_trl.main([*sizes, *flags])
    assert len(history) == len(Recording.calls) == 2
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert history[1]["kl"] != 0
    assert f"{trainer}: sentiment" in capsys.readouterr().out
    env = gym.make("TextSentiment-v0", vocabulary="reviews", max_tokens=6, prompts=prompts)
    for measures, call in zip(history, Recording.calls, strict=True):
        sentiments = []
        for prompt, completion, ids, given in zip(*call, strict=True):
            env.reset(options={"prompt": prompt})
            for action in ids:
                _, reward, over, _, info = env.step(action)
            assert over
            assert info["text"] == prompt + completion
            assert reward == pytest.approx(given, abs=1e-6)
            sentiments.append(info["sentiment"])
        assert measures["sentiment"] == pytest.approx(np.mean(sentiments), abs=1e-4)
        assert measures["reward"] == pytest.approx(np.mean(call[3]), abs=1e-4)
    from agents import GPT2  # what TRL saved is a model of this package too

    trained = GPT2.from_pretrained(tmp_path)
    start = GPT2.from_pretrained("reviews")
    assert trained.config.token_ids == start.config.token_ids
    assert any(
        (a != b).any() for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    )


def test_training_ends_at_a_sentiment(capsys):
    flags = ["--updates", "5", "--rows", "4", "--max-tokens", "3", "--until", "-1"]
    assert len(plug_trl.main(flags)) == 1


def test_without_a_kl_penalty_there_is_no_kl():
    flags = ["--updates", "1", "--rows", "4", "--max-tokens", "3", "--kl-coef", "0"]
    [measures] = plug_trl.main(flags)
    assert {"sentiment", "reward"} <= measures.keys()
