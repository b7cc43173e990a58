import math

import numpy as np
import pytest
import torch

from agents.metrics import finite_measures, rollout_metrics, update_metrics
from agents.rollout import Episodes

MASK = torch.tensor([[True, True, False], [False, True, True]])


def episodes(infos):
    rewards = torch.tensor([[1.0, 2, 0], [0, 0, 7]])
    return Episodes(torch.zeros(2, 3, dtype=torch.int64), MASK, rewards, infos)


def test_means_over_a_batch():
    infos = [
        {"length": 2, "sentiment": 0.5, "text": "a", "only": 1, "a.b": 1, "won": True},
        {"length": 1, "sentiment": np.float32(-1), "text": "b", "a.b": 2, "won": False},
    ]
    assert rollout_metrics(episodes(infos)) == {
        "ep_rew_mean": 5.0,
        "ep_rew_std": 2.0,
        "ep_len_mean": 2.0,
        "end_rate": 0.5,  # the second wrote a token more than `length` counts: its end
        "length": 1.5,
        "sentiment": -0.25,
        "won": 0.5,
    }


def test_an_environment_that_does_not_tell_lengths():
    assert rollout_metrics(episodes([{}, {}])).keys() == {
        "ep_rew_mean",
        "ep_rew_std",
        "ep_len_mean",
    }


def test_means_of_an_update():
    log_ratio = torch.tensor([[0.5, -1, 0], [0, 0, 2]])
    entropy = torch.tensor([[1.0, 2, 0], [0, 3, 2]])
    baseline = torch.tensor([[1.0, 1, 100], [100, 4, 2]])
    k3 = sum(math.exp(-x) - 1 + x for x in (0.5, -1, 2))
    log_prob = torch.tensor([[-1.0, -2, 0], [0, -1, -3]])
    start = [-1.5, -1, -1, -5]  # log_prob - log_ratio
    assert update_metrics(MASK, log_prob, log_ratio, entropy, baseline) == pytest.approx(
        {
            "entropy": 2.0,
            "kl": 0.75,
            "kl_k3": k3 / 2,
            "perplexity": math.exp(-sum(start) / 4),
            "baseline": 2.0,
        }
    )


def test_finite_measures_are_summed():
    losses, norm = torch.tensor([1.5, -0.25]), torch.tensor(3.0, dtype=torch.float64)
    assert finite_measures(["a_loss", "b_loss"], losses, norm, 7) == {
        "a_loss": 1.5,
        "b_loss": -0.25,
        "loss": 1.25,
        "grad_norm": 3.0,
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_that_is_not_finite_is_named(bad):
    names, fine = ["a_loss", "b_loss"], torch.tensor(1.0)
    with pytest.raises(FloatingPointError, match=f"update 7: the b_loss is {bad}; no weight"):
        finite_measures(names, torch.tensor([1.0, bad]), fine, 7)
    with pytest.raises(FloatingPointError, match=f"update 8: the gradient's norm is {bad}; no"):
        finite_measures(names, torch.ones(2), fine * bad, 8)
