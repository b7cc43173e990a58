import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import letters
from stable_baselines3.common.vec_env import VecEnvWrapper

from agents import GPT2Config, GPT2Policy, SB3VecEnv
from agents.gpt2 import sample
from agents.rollout import collect_episodes

WORDS = [" good", " bad", " film", " not"]
END, PAD, ROWS, STEPS = 4, 5, 7, 6
PROMPTS = ["good", "not bad film"]


def make_envs(prompts=None, mode="SameStep"):
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=ROWS,
        vocabulary=WORDS,
        max_tokens=STEPS,
        prompts=prompts,
        sentiment_model=letters,
        autoreset_mode=mode,
    )
    envs = SB3VecEnv(envs)
    envs.seed(0)
    return envs


def make_policy(env):
    torch.manual_seed(0)
    width = env.observation_space.shape[0]
    config = GPT2Config(vocab_size=PAD, n_positions=width + 1, n_embd=16, n_layer=2, n_head=2)
    space = spaces.Box(0, PAD, (width,), np.int64)
    policy = GPT2Policy(space, spaces.Discrete(PAD), lambda _: 1e-3, config=config)
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.2)
    policy.set_training_mode(False)
    return policy


@torch.no_grad()
def step_by_step(policy, env, u, deterministic):
    """Texts, rewards and infos of one episode a row, for which the policy is asked at every step."""
    obs = env.reset()
    episodes = [None] * ROWS
    totals = np.zeros(ROWS)
    for drawn in u:
        logits = policy.get_distribution(torch.as_tensor(obs)).distribution.logits
        actions = logits.argmax(-1) if deterministic else sample(logits, u=drawn)
        obs, rewards, dones, infos = env.step(actions.numpy())
        for row in range(ROWS):
            if episodes[row] is None:
                totals[row] += rewards[row]
                if dones[row]:
                    episodes[row] = infos[row]["terminal_observation"].tolist(), totals[row]
    return episodes


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["no prompts", "prompts"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_whole_episodes_are_those_written_step_by_step(mode, prompts, deterministic):
    env = make_envs(prompts, mode)
    policy = make_policy(env)
    for seed in range(3):
        env.seed(seed)
        torch.manual_seed(seed)
        batch = collect_episodes(policy, env, deterministic=deterministic)
        torch.manual_seed(seed)
        u = torch.rand(STEPS, ROWS, dtype=torch.float64)  # what `generate` draws
        env.seed(seed)
        expected = step_by_step(policy, env, u, deterministic)
        got = list(zip(batch.texts.tolist(), batch.rewards.sum(1).tolist(), strict=True))
        assert [text for text, _ in got] == [text for text, _ in expected]
        np.testing.assert_allclose([r for _, r in got], [r for _, r in expected], rtol=1e-6)
        written = batch.mask.sum(1)
        assert (written <= STEPS).all()
        if not deterministic:
            assert len(set(written.tolist())) > 1, "texts of several lengths"


def test_a_batch_is_written_in_one_go(monkeypatch):
    env = make_envs(PROMPTS)
    policy = make_policy(env)
    calls = []
    write = policy.generate_texts
    monkeypatch.setattr(policy, "generate_texts", lambda *a: calls.append(a) or write(*a))
    collect_episodes(policy, env)
    assert len(calls) == 1


class Interjects(VecEnvWrapper):
    """An environment with a will of its own: each token that the agent writes becomes "film"."""

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        self.venv.step_async(np.full_like(actions, 2))

    def step_wait(self):
        return self.venv.step_wait()


def test_an_environment_that_changes_the_text_is_refused():
    """Its texts would be scored as if the policy had seen what it wrote itself."""
    env = Interjects(make_envs())
    with pytest.raises(ValueError, match="env shows another text than the tokens written"):
        collect_episodes(make_policy(env), env)


def test_an_environment_that_does_not_say_its_limit(monkeypatch):
    env = make_envs(PROMPTS)
    policy = make_policy(env)
    monkeypatch.setattr(env, "has_attr", lambda name: name != "max_tokens")
    batch = collect_episodes(policy, env)
    assert (batch.mask.sum(1) <= STEPS).all()
