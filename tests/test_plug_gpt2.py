"""GPT2Policy in stable-baselines3's own PPO and A2C, and its prefix cache in their loops."""

import gymnasium as gym
import pytest
import torch
from helpers import letters
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from agents import REINFORCE, GPT2Config, GPT2Policy, SB3VecEnv, TokenEmbedding

WORDS = [" good", " bad", " film", " not"]
ALGORITHMS = {
    "PPO": (PPO, {"n_steps": 20, "batch_size": 60, "n_epochs": 4}),
    "A2C": (A2C, {"n_steps": 5}),
}
SHAPE = {"n_embd": 16, "n_layer": 1, "n_head": 2}
TINY = GPT2Config(vocab_size=5, n_positions=12, **SHAPE).to_dict()


def make(kind, arguments, policy=GPT2Policy, num_envs=15, **env):
    env = {"vocabulary": WORDS, "max_tokens": 5, "sentiment_model": letters} | env
    venv = VecMonitor(SB3VecEnv(gym.make_vec("TextSentiment-v0", num_envs=num_envs, **env)))
    arguments = {"gamma": 1.0, "seed": 0, "policy_kwargs": {"config": TINY}} | arguments
    return kind(policy, venv, learning_rate=3e-3, **arguments)


def goods(texts):
    return [text.split().count("good") / 5 for text in texts]


@pytest.mark.parametrize(("kind", "arguments"), ALGORITHMS.values(), ids=ALGORITHMS)
def test_learns(kind, arguments):
    model = make(kind, arguments, sentiment_model=goods, length_penalty=0)
    before = evaluate_policy(model, model.env, 64, deterministic=False)[0]
    model.learn(2_500)
    assert before < 0.4
    assert evaluate_policy(model, model.env, 64, deterministic=False)[0] > 0.8


class CheckedPolicy(GPT2Policy):
    """Compares what the cache says with one full read of each text alone, every time it is asked."""

    checks = 0

    def last_hidden(self, obs):
        hidden = super().last_hidden(obs)
        if not torch.is_grad_enabled():
            end = self.config.vocab_size - 1
            for got, row in zip(hidden, obs, strict=True):
                text = [end, *row[row <= end].long().tolist()]
                torch.testing.assert_close(got, self.gpt2.hidden(torch.tensor([text]))[0, -1])
            self.checks += len(hidden)
        return hidden


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("prompts", [None, ["good", " bad film", "not not not good"]])
@pytest.mark.parametrize(("kind", "arguments"), ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_cache_equals_full_reads_in_sb3s_own_loop(kind, arguments, prompts, mode, tmp_path):
    """Ragged texts that restart, updates, evaluations in between, set_parameters, and a load."""
    model = make(kind, arguments, CheckedPolicy, 3, prompts=prompts, autoreset_mode=mode)
    other = make(kind, arguments | {"seed": 1}, CheckedPolicy, 3, prompts=prompts)
    for _ in range(3):
        before = model.policy.gpt2.wte.weight.detach().clone()
        model.learn(60, reset_num_timesteps=False)
        assert not torch.equal(before, model.policy.gpt2.wte.weight)
        evaluate_policy(model, model.env, 3)
    obs = model.env.reset()
    model.predict(obs)
    model.set_parameters(other.get_parameters())
    model.predict(obs)
    assert model.policy.checks > 200
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model", env=model.env)
    again.predict(obs)
    again.learn(60)
    assert again.policy.checks > 60


class CacheUse(BaseCallback):
    """What the cache of the rollout spared, before the update empties it."""

    def _on_training_start(self):
        self.read = self.reused = 0

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        cache = self.model.policy.prefix_cache(self.training_env.num_envs)
        self.read += cache.tokens_read
        self.reused += cache.tokens_reused


@pytest.mark.parametrize(("kind", "arguments"), ALGORITHMS.values(), ids=ALGORITHMS)
def test_sb3s_loop_reads_only_new_tokens(kind, arguments):
    """Each step reads a token a row; A2C's many updates make it read its texts' beginnings again."""
    model = make(kind, arguments | {"n_steps": 45}, num_envs=4, prompts=["good film not bad"])
    use = CacheUse()
    model.learn(180, callback=use)
    shown = use.read + use.reused
    assert use.reused / shown > 0.7
    # One token a row and step, one more for the last value, and 5 for each restarted text.
    assert use.read <= 4 * 46 + 5 * len(model.ep_info_buffer) + 4 * 5


@pytest.mark.parametrize("policy", [GPT2Policy, "MlpPolicy"])
def test_scaled_observations_are_refused(policy):
    venv = SB3VecEnv(gym.make_vec("TextSentiment-v0", num_envs=2, sentiment_model=letters))
    extractor = {"features_extractor_class": TokenEmbedding}
    policy_kwargs = extractor if policy == "MlpPolicy" else {}
    model = A2C(policy, VecNormalize(venv), policy_kwargs=policy_kwargs)
    with pytest.raises((TypeError, ValueError), match="norm_obs=False"):
        model.learn(20)


def test_another_vocabulary_is_refused_at_construction():
    config = GPT2Config(vocab_size=7, n_positions=12, **SHAPE).to_dict()
    with pytest.raises(ValueError, match="vocab_size=7 but the environment 5 actions.*restrict"):
        make(PPO, {"n_steps": 4, "batch_size": 4, "policy_kwargs": {"config": config}})


def test_reinforce_refuses_other_words_of_the_same_number():
    """Stock algorithms show a policy only how many actions there are; REINFORCE looks at the words."""
    envs = gym.make_vec("TextSentiment-v0", num_envs=2, vocabulary=WORDS, sentiment_model=letters)
    config = GPT2Config(vocab_size=5, n_positions=21, token_ids=(1, 2, 3, 4, 50256), **SHAPE)
    with pytest.raises(ValueError, match="vocabulary of 5 tokens is not the environment's"):
        REINFORCE(GPT2Policy, envs, policy_kwargs={"config": config})
