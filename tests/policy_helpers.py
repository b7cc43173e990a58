"""A small policy and its observations."""

import numpy as np
import torch
from gymnasium import spaces

from agents import GPT2Config, GPT2Policy

V, L = 6, 9


def make_policy(**arguments):
    torch.manual_seed(0)
    space = spaces.Box(0, V, (L,), np.int64)
    config = GPT2Config(vocab_size=V, n_positions=L + 1, n_embd=16, n_layer=2, n_head=2)
    policy = GPT2Policy(space, spaces.Discrete(V), lambda _: 1e-3, config=config, **arguments)
    for p in policy.parameters():  # fresh weights are too small to tell texts apart
        torch.nn.init.normal_(p, std=0.3)
    policy.set_training_mode(False)
    return policy


def observation(*texts):
    obs = np.full((len(texts), L), V)
    for row, text in enumerate(texts):
        obs[row, : len(text)] = text
    return torch.as_tensor(obs)
