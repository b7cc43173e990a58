"""A checkpoint of format text-sentiment-env/1, written before `agents` was rearranged.

`data/checkpoint-v1.json` holds what that code answered: before, and after two more updates.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reinforce_helpers import PROMPTS, learn, make_envs

from agents import REINFORCE

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "checkpoint-v1.zip"


@pytest.fixture
def recorded():
    return json.loads((DATA / "checkpoint-v1.json").read_text("utf-8"))


@torch.no_grad()
def assert_log_probs(model, recorded, expected):
    obs = torch.tensor(recorded["observations"])
    got = model.policy.get_distribution(obs).distribution.logits
    torch.testing.assert_close(got, torch.tensor(expected), atol=2e-5, rtol=0)


def test_predicts_as_the_code_that_wrote_it(recorded):
    model = REINFORCE.load(CHECKPOINT)
    obs = np.array(recorded["observations"])
    assert model.predict(obs, deterministic=True)[0].tolist() == recorded["actions"]
    assert_log_probs(model, recorded, recorded["log_probs"])
    assert (model._n_updates, model.num_timesteps) == (recorded["n_updates"], 45)


def test_goes_on_as_the_code_that_wrote_it(recorded):
    """Weights, start model, optimizer, moving average and random numbers all count here."""
    model = REINFORCE.load(CHECKPOINT, env=make_envs(4, prompts=PROMPTS))
    learn(model, 2, reset_num_timesteps=False)
    after = recorded["after_two_more_updates"]
    assert model.num_timesteps == after["num_timesteps"]
    assert_log_probs(model, recorded, after["log_probs"])
