import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import letters
from hypothesis import given
from hypothesis import strategies as st
from reinforce_helpers import PAD, PROMPTS, VOCABULARY, collected, make_envs, make_model
from stable_baselines3.common.callbacks import BaseCallback

from agents import REINFORCE, GPT2Policy
from agents.advantages import (
    EMA_DECAY,
    Baseline,
    extend_last_return,
    leave_one_out,
    monte_carlo_returns,
    normalize,
)


@given(
    rewards=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    gamma=st.floats(0, 1),
)
def test_returns_are_discounted_sums(rewards, gamma):
    returns = monte_carlo_returns(torch.tensor([rewards], dtype=torch.float64), gamma)[0]
    for t in range(len(rewards)):
        expected = sum(gamma ** (k - t) * r for k, r in enumerate(rewards) if k >= t)
        assert returns[t].item() == pytest.approx(expected)


def test_normalized_advantages_have_mean_0_and_deviation_1_where_something_is_written():
    torch.manual_seed(0)
    mask = torch.rand(5, 7) < 0.5
    advantages = normalize(3 + 2 * torch.randn(5, 7, dtype=torch.float64), mask)
    assert not advantages[~mask].any()
    assert advantages[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert advantages[mask].std(correction=0).item() == pytest.approx(1)
    alone = normalize(torch.tensor([[2.0, 5.0]]), torch.tensor([[False, True]]))
    assert not alone.any()  # a single token is its own mean


def test_the_logged_baseline_is_what_was_subtracted():
    records = []

    class Log(BaseCallback):
        def _on_step(self):
            return True

        def _on_training_end(self):
            records.append(self.model.logger.name_to_value["train/baseline"])

    for normalize_advantage in (False, True):
        model = make_model(baseline="none", normalize_advantage=normalize_advantage)
        model.learn(1, Log(), log_interval=100)
    assert records == [0, 0]


def test_an_ended_episode_keeps_its_last_return():
    returns = torch.tensor([[1.0, 2, 0, 0], [5, 6, 7, 8]])
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    assert extend_last_return(returns, mask).tolist() == [[1, 2, 2, 2], [5, 6, 7, 8]]


def test_leave_one_out_within_groups():
    returns = torch.tensor([[1.0], [3], [10], [20]])
    mask = torch.ones(4, 1, dtype=torch.bool)
    assert leave_one_out(returns, mask, 2).tolist() == [[3], [1], [20], [10]]
    assert leave_one_out(returns, mask, 4)[0].item() == pytest.approx(33 / 3)


# ---------------------------------------------------------------------------- the baseline object

RETURNS = torch.tensor([[1.0, 2, 0], [3, 5, 6], [10, 0, 0], [20, 30, 0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
EXTENDED = torch.tensor([[1.0, 2, 2], [3, 5, 6], [10, 10, 10], [20, 30, 30]])
VALUES = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize(
    ("kind", "group_size", "batch_size", "prompts", "expected"),
    [
        ("auto", None, 8, PROMPTS, ("rloo", 4)),
        ("auto", None, 8, ["one"], ("rloo", 8)),
        ("auto", None, 8, [], ("rloo", 8)),
        ("auto", 2, 8, ["one"], ("rloo", 2)),
        ("auto", None, 1, PROMPTS, ("ema", 4)),
        ("rloo", None, 4, PROMPTS, ("rloo", 4)),
        ("mean", None, 3, PROMPTS, ("mean", 4)),
        ("none", None, 1, [""], ("none", 1)),
        ("value", 3, 4, PROMPTS, ("value", 3)),
    ],
)
def test_what_is_left_open_is_resolved(kind, group_size, batch_size, prompts, expected):
    baseline = Baseline(kind, group_size, batch_size, prompts)
    assert (baseline.kind, baseline.group_size) == expected


@pytest.mark.parametrize(
    ("kind", "group_size", "batch_size", "message"),
    [
        ("mean", None, 1, "baseline='mean' compares a row with others"),
        ("rloo", None, 1, "baseline='rloo' compares a row with others"),
        ("rloo", 3, 8, "group_size=3 must be at least 2 and divide the 8 rows"),
        ("rloo", 1, 8, "group_size=1 must be at least 2 and divide the 8 rows"),
        (
            "rloo",
            None,
            6,
            "group_size=4, the default with prompts, must be at least 2 and divide the 6 rows",
        ),
    ],
)
def test_batches_that_cannot_be_compared_are_refused(kind, group_size, batch_size, message):
    with pytest.raises(ValueError, match=message):
        Baseline(kind, group_size, batch_size, PROMPTS)


def test_kinds_of_baselines():
    def of(kind, group_size=None):
        return Baseline(kind, group_size, 4, [""]).estimate(RETURNS, MASK, VALUES)

    assert torch.equal(of("none"), torch.zeros(4, 3))
    assert torch.equal(of("value"), VALUES)
    others = (EXTENDED.sum(0) - EXTENDED) / 3
    torch.testing.assert_close(of("mean", group_size=2), others)  # of all rows, whatever the groups
    torch.testing.assert_close(of("rloo"), others)
    assert torch.equal(of("rloo", group_size=2), EXTENDED[[1, 0, 3, 2]])


@pytest.mark.parametrize("kind", ["none", "mean", "ema", "rloo"])
def test_no_row_is_compared_with_itself(kind):
    for row in range(4):
        changed = RETURNS.clone()
        changed[row] += 100
        first, second = (Baseline(kind, 2, 4, [""]) for _ in range(2))
        first.moving_average = second.moving_average = torch.ones(3)
        before, after = (
            first.estimate(RETURNS, MASK, VALUES),
            second.estimate(changed, MASK, VALUES),
        )
        assert torch.equal(before[row], after[row])


def test_the_moving_average_is_of_past_updates():
    baseline = Baseline("ema", None, 4, [""])
    assert baseline.moving_average is None
    assert torch.equal(baseline.estimate(RETURNS, MASK, VALUES), torch.zeros(4, 3))
    mean = EXTENDED.mean(0)
    baseline.update(RETURNS, MASK)
    assert torch.equal(baseline.moving_average, mean)
    assert torch.equal(baseline.estimate(3 * RETURNS, MASK, VALUES), mean.expand(4, 3))
    assert torch.equal(baseline.moving_average, mean)  # an estimate changes nothing
    baseline.update(3 * RETURNS, MASK)
    torch.testing.assert_close(
        baseline.moving_average, EMA_DECAY * mean + (1 - EMA_DECAY) * 3 * mean
    )


def test_prompts_are_drawn_for_groups():
    generator = np.random.default_rng(0)
    baseline = Baseline("rloo", 2, 6, PROMPTS)
    draws = [baseline.draw_prompts(generator) for _ in range(30)]
    assert all(drawn[::2] == drawn[1::2] and len(drawn) == 6 for drawn in draws)
    for group in range(3):
        assert {drawn[2 * group] for drawn in draws} == set(PROMPTS)
    assert any(len(set(drawn)) == 3 for drawn in draws)


@pytest.mark.parametrize(
    ("kind", "prompts"), [("ema", PROMPTS), ("mean", PROMPTS), ("rloo", ["one"]), ("rloo", [])]
)
def test_where_no_groups_need_them_the_environment_draws_prompts(kind, prompts):
    generator = np.random.default_rng(0)
    state = generator.bit_generator.state
    assert Baseline(kind, 2, 4, prompts).draw_prompts(generator) is None
    assert generator.bit_generator.state == state


def test_another_environment_brings_its_prompts_and_keeps_the_average():
    model = make_model(make_envs(4, prompts=PROMPTS), baseline="rloo", group_size=2)
    model._baseline.moving_average = average = torch.ones(5)
    model.set_env(make_envs(4, prompts=["bad", "bad bad"]))
    assert model._baseline.prompts == ["bad", "bad bad"]
    assert model._baseline.moving_average is average
    batch = collected(model)
    starts = (~batch.mask & (batch.texts < PAD)).sum(1)
    assert set(starts.tolist()) <= {1, 2}
    assert (batch.texts[:, 0] == 1).all()  # " bad"


def test_an_environment_without_prompts_has_one_group():
    env = gym.make("TextSentiment-v0", vocabulary=VOCABULARY, sentiment_model=letters)
    assert REINFORCE(GPT2Policy, env, seed=0)._baseline.kind == "ema"
    assert make_model(make_envs(6))._baseline.group_size == 6
