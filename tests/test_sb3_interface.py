"""REINFORCE as the algorithms, callbacks and environments of stable-baselines3 expect it."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import letters
from stable_baselines3.common.callbacks import (
    BaseCallback,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import configure

from agents import REINFORCE, GPT2Config, GPT2Policy, SB3VecEnv

VOCABULARY = [" good", " bad"]


def make_envs(mode=None, num_envs=4, **arguments):
    arguments = {"vocabulary": VOCABULARY, "max_tokens": 3, "sentiment_model": letters, **arguments}
    return gym.make_vec("TextSentiment-v0", num_envs=num_envs, vectorization_mode=mode, **arguments)


def weights(envs, updates=3, **arguments):
    model = REINFORCE(GPT2Policy, envs, seed=3, learning_rate=1e-2, **arguments)
    model.learn(total_updates=updates)
    envs.close()
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_separate_environments_train_like_the_shared_one(mode):
    assert torch.equal(weights(make_envs(mode)), weights(make_envs()))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_separate_environments_get_the_prompts_of_their_groups(mode):
    prompts = ["good", "bad", "good bad"]
    envs = make_envs(mode, prompts=prompts)
    model = REINFORCE(GPT2Policy, envs, seed=3, baseline="rloo", group_size=2)
    _, callback = model._setup_learn(1)
    drawn = set()
    for _ in range(6):
        batch = model.collect_episodes(callback)
        starts = [
            tuple(text[~mask & (text < 3)].tolist())
            for text, mask in zip(batch.texts, batch.mask, strict=True)
        ]
        assert starts[0] == starts[1]
        assert starts[2] == starts[3]
        drawn |= set(starts)
    assert drawn == {(0,), (1,), (0, 1)}
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_attributes_of_separate_environments(mode):
    envs = SB3VecEnv(make_envs(mode))
    envs.set_attr("render_fps", 7)
    envs.set_attr("render_fps", 9, indices=[1, 2])
    assert envs.get_attr("render_fps") == [7, 9, 9, 7]
    assert envs.get_attr("render_fps", 1) == [9]
    assert envs.env_method("has_wrapper_attr", "prompts", indices=[1, 2]) == [True, True]
    assert envs.get_attr("max_tokens", [0, 3]) == [3, 3]
    envs.close()


def test_a_run_on_separate_environments_resumes(tmp_path):
    prompts = {"prompts": ["good", "bad"]}
    whole = weights(make_envs("async", **prompts), 4)
    envs = make_envs("async", **prompts)
    model = REINFORCE(GPT2Policy, envs, seed=3, learning_rate=1e-2).learn(total_updates=2)
    model.save(tmp_path / "run")
    envs.close()
    again = make_envs("async", **prompts)
    model = REINFORCE.load(tmp_path / "run", env=again)
    model.learn(total_updates=2, reset_num_timesteps=False)
    again.close()
    got = torch.cat([p.detach().flatten() for p in model.policy.parameters()])
    assert torch.equal(got, whole)


class Seen(BaseCallback):
    """Collects what a callback of SB3 finds in `self.locals`."""

    def __init__(self):
        super().__init__()
        self.ended, self.paid, self.texts = 0, 0.0, []

    def _on_step(self):
        dones, rewards, infos = (self.locals[name] for name in ("dones", "rewards", "infos"))
        assert len(dones) == len(rewards) == len(infos) == self.training_env.num_envs
        self.ended += int(np.sum(dones))
        self.paid += float(np.sum(rewards[dones]))
        self.texts += [info["text"] for info, done in zip(infos, dones, strict=True) if done]
        return True


def test_callbacks_see_every_episode_end_once():
    model, seen = REINFORCE(GPT2Policy, make_envs(), seed=0), Seen()
    model.learn(callback=seen, total_updates=3)
    assert seen.ended == len(seen.texts) == model._episode_num == 12
    returns = [info["r"] for info in model.ep_info_buffer]
    assert seen.paid == pytest.approx(sum(returns), abs=1e-5)


def test_training_stops_at_a_number_of_episodes():
    model = REINFORCE(GPT2Policy, make_envs(), seed=0)
    model.learn(10**6, callback=StopTrainingOnMaxEpisodes(3))
    assert model._episode_num <= 12  # 3 in each of 4 rows, as SB3 counts


def test_a_callback_of_sb3_writes_the_log():
    model = REINFORCE(GPT2Policy, make_envs(), seed=0)
    model.set_logger(configure(None, []))
    written = []
    model.logger.dump = lambda step: written.append(step)
    model.learn(24, callback=LogEveryNTimesteps(5), log_interval=10**6)
    assert len(written) >= 4
    assert written == sorted(written)


@pytest.mark.parametrize(
    ("envs", "message"),
    [
        ({"num_envs": 8}, r"env has 8 rows, the model's 6: make it with as many, or .*load\("),
        ({"prompts": ["good"]}, "Observation spaces do not match"),
        ({"prompts": ["good", "bad"], "max_tokens": 2}, "group_size=4, the default"),
    ],
)
def test_a_refused_env_leaves_the_model_as_it_was(envs, message):
    model = REINFORCE(GPT2Policy, make_envs(num_envs=6), seed=0)
    model.learn(1)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.set_env(make_envs(**{"num_envs": 6, **envs}))
    assert all(vars(model)[name] is value for name, value in before.items())


def test_policy_by_its_name():
    assert isinstance(REINFORCE("GPT2Policy", make_envs()).policy, GPT2Policy)
    with pytest.raises(ValueError, match="Policy MlpPolicy unknown"):
        REINFORCE("MlpPolicy", make_envs())


def test_a_part_of_a_config_is_completed():
    model = REINFORCE(GPT2Policy, make_envs(), policy_kwargs={"config": {"n_layer": 1}})
    assert model.policy.config == GPT2Config(
        vocab_size=3,
        n_positions=4,
        n_embd=64,
        n_layer=1,
        n_head=2,
        token_ids=tuple(make_envs().vocabulary.token_ids.tolist()),
    )
    with pytest.raises(ValueError, match=r"config holds \['n_layers'\]: it may name vocab_size"):
        REINFORCE(GPT2Policy, make_envs(), policy_kwargs={"config": {"n_layers": 1}})
