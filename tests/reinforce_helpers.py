"""A toy for REINFORCE that several test modules share: two words and the end of the text."""

import gymnasium as gym
import torch
from helpers import letters
from stable_baselines3.common.callbacks import BaseCallback

from agents import REINFORCE, GPT2Config, GPT2Policy

VOCABULARY = [" good", " bad"]  # with <|endoftext|>: a toy of three tokens
END, PAD, STEPS = 2, 3, 3
PROMPTS = ["good", "bad", "good bad"]
TINY = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}


def make_envs(num_envs=4, **arguments):
    arguments = {
        "vocabulary": VOCABULARY,
        "max_tokens": STEPS,
        "sentiment_model": letters,
        **arguments,
    }
    return gym.make_vec("TextSentiment-v0", num_envs=num_envs, **arguments)


def make_model(envs=None, **arguments):
    envs = make_envs() if envs is None else envs
    size = len(
        envs.get_wrapper_attr("vocabulary")
        if hasattr(envs, "get_wrapper_attr")
        else envs.vocabulary
    )
    config = GPT2Config(vocab_size=size, **TINY)
    arguments = {"seed": 0, "policy_kwargs": {"config": config}, **arguments}
    model = REINFORCE(GPT2Policy, envs, **arguments)
    with torch.no_grad():  # so that tokens are far from equally likely
        for p in model.policy.gpt2.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype).to(p.device))  # the same on a GPU
    return model


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def collected(model):
    """One batch, as `learn` would collect it."""
    _, callback = model._setup_learn(1)
    return model.collect_episodes(callback)


def learn(model, updates, **arguments):
    return model.learn(total_updates=updates, **arguments)


class Records(BaseCallback):
    """Keeps what every update logged."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def _on_step(self):
        return True

    def _on_training_start(self):
        dump = self.logger.dump

        def keep_and_dump(step=0):
            self.records.append(dict(self.logger.name_to_value))
            dump(step)

        self.logger.dump = keep_and_dump
