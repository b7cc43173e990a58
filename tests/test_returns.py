import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.advantages import extend_last_return, leave_one_out, monte_carlo_returns


@given(
    rewards=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    gamma=st.floats(0, 1),
)
def test_returns_are_discounted_sums(rewards, gamma):
    returns = monte_carlo_returns(torch.tensor([rewards], dtype=torch.float64), gamma)[0]
    for t in range(len(rewards)):
        expected = sum(gamma ** (k - t) * r for k, r in enumerate(rewards) if k >= t)
        assert returns[t].item() == pytest.approx(expected)


def test_an_ended_episode_keeps_its_last_return():
    returns = torch.tensor([[1.0, 2, 0, 0], [5, 6, 7, 8]])
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    assert extend_last_return(returns, mask).tolist() == [[1, 2, 2, 2], [5, 6, 7, 8]]


def test_leave_one_out_within_groups():
    returns = torch.tensor([[1.0], [3], [10], [20]])
    mask = torch.ones(4, 1, dtype=torch.bool)
    assert leave_one_out(returns, mask, 2).tolist() == [[3], [1], [20], [10]]
    assert leave_one_out(returns, mask, 4)[0].item() == pytest.approx(33 / 3)
