"""Every hyperparameter of REINFORCE refuses what it cannot be, by name and value."""

import inspect
import math
import re
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reinforce_helpers import make_envs, make_model

from agents import REINFORCE, GPT2Policy
from agents.advantages import BASELINES
from agents.distributed import Parallel
from agents.hyperparameters import (
    HYPERPARAMETERS,
    KLEstimator,
    LRDecay,
    check_hyperparameters,
    learning_rate_factor,
)

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(REINFORCE).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
NEGATIVE = st.floats(max_value=-5e-324, allow_nan=False) | st.integers(max_value=-1)
NO_NUMBER = st.sampled_from(["1", "", True, False, [1.0], {}, (1,), 1j, b"1", np.bool_(True)])
NO_FLOAT = NOT_FINITE | NEGATIVE | NO_NUMBER | st.just(None)
NO_INTEGER = NOT_FINITE | NO_NUMBER | st.floats(-9, 9)
FLOATS = {
    "learning_rate": NO_FLOAT,
    "gamma": NO_FLOAT | st.floats(min_value=1, exclude_min=True) | st.integers(min_value=2),
    "ent_coef": NO_FLOAT,
    "vf_coef": NO_FLOAT,
    "kl_coef": NO_FLOAT,
    "max_grad_norm": NO_FLOAT | st.sampled_from([0, 0.0, -0.0]),
}
INTEGERS = {
    "warmup_updates": NO_INTEGER | st.none() | st.integers(max_value=-1),
    "stats_window_size": NO_INTEGER | st.none() | st.integers(max_value=0),
    "group_size": NO_INTEGER | st.integers(max_value=1),
    "micro_batch_size": NO_INTEGER | st.integers(max_value=0),
    "seed": NO_INTEGER | st.integers(max_value=-1),  # and too large ones, below
}
ODD = st.text(max_size=8) | NO_NUMBER | NOT_FINITE | st.none() | st.integers()
CHOICES = {
    "baseline": ("auto", *BASELINES),
    "kl_estimator": get_args(KLEstimator),
    "lr_decay": get_args(LRDecay),
    "parallel": get_args(Parallel),
}
BAD = {
    **FLOATS,
    **INTEGERS,
    **{name: ODD.filter(lambda x, c=choices: x not in c) for name, choices in CHOICES.items()},
    "normalize_advantage": st.sampled_from([0, 1, 0.0, "True", "", None, math.nan, [True]]),
}
GOOD = {
    "learning_rate": [0, 1, 1e-4, np.float32(0.1), Fraction(1, 2), lambda progress: progress],
    "gamma": [0, 1, 0.5, np.float64(1)],
    "ent_coef": [0, 2, 0.5],
    "vf_coef": [0, 2, 0.5],
    "kl_coef": [0, 2, 0.5],
    "max_grad_norm": [5e-324, 1, 1e300],
    "warmup_updates": [0, np.int64(3)],
    "stats_window_size": [1, 100],
    "group_size": [None, 2, np.int32(4)],
    "micro_batch_size": [None, 1],
    "seed": [None, 0, 2**32 - 1],
    "normalize_advantage": [True, False],
    **CHOICES,
}


def test_every_hyperparameter_is_tried():
    assert BAD.keys() == GOOD.keys() == {*HYPERPARAMETERS, "parallel", "stats_window_size"}
    assert HYPERPARAMETERS == REINFORCE.ARGUMENTS


@pytest.mark.parametrize("name", BAD)
@given(data=st.data())
def test_what_it_cannot_be_is_refused(name, data):
    value = data.draw(BAD[name])
    with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))} must be "):
        check_hyperparameters(DEFAULTS | {name: value})


@pytest.mark.parametrize("name", GOOD)
def test_what_it_can_be_is_taken(name):
    for value in GOOD[name]:
        check_hyperparameters(DEFAULTS | {name: value})


@pytest.mark.parametrize("name", BAD)
def test_reinforce_checks_them(name):
    envs = make_envs()
    with pytest.raises(ValueError, match=rf"^{name}=\[\] must be "):
        REINFORCE(GPT2Policy, envs, **{name: []})


def test_a_seed_that_numpy_does_not_take_is_refused():
    with pytest.raises(ValueError, match="^seed=4294967296 is too large"):
        check_hyperparameters(DEFAULTS | {"seed": 2**32})


@pytest.mark.parametrize("precision", ["fp16", "", None, 1])
def test_a_precision_that_is_none_is_refused(precision):
    with pytest.raises(ValueError, match=f"^precision={precision!r} must be one of"):
        REINFORCE(GPT2Policy, make_envs(), precision=precision)


def test_what_is_set_later_is_used():
    """As by a model that was made with it."""
    made = make_model(learning_rate=1e-2, baseline="none").learn(total_updates=1)
    set_later = make_model()
    set_later.learning_rate, set_later.baseline = 1e-2, "none"
    set_later.learn(total_updates=1)
    weights = zip(set_later.policy.parameters(), made.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("bad", [-1, 1.5, True, "7", math.nan])
def test_learn_checks_how_long(bad):
    model = make_model()
    with pytest.raises(ValueError, match=f"^total_timesteps={bad!r} must be "):
        model.learn(bad)
    with pytest.raises(ValueError, match=f"^total_updates={bad!r} must be "):
        model.learn(1, total_updates=bad)
    assert model.num_timesteps == 0


@pytest.mark.parametrize(("name", "bad"), [("kl_coef", -1), ("kl_estimator", "foo")])
def test_learn_checks_what_was_set_after_the_constructor(name, bad):
    model = make_model()
    setattr(model, name, bad)
    with pytest.raises(ValueError, match=f"^{name}={bad!r} must be "):
        model.learn(1)
    assert model.num_timesteps == 0


def test_a_training_without_an_end_is_refused():
    model = make_model()
    with pytest.raises(
        ValueError, match=r"^learn\(\) has no end: pass total_timesteps or total_up"
    ):
        model.learn()
    assert model.learn(total_updates=1)._n_updates == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_a_schedule_that_goes_astray_is_named(bad):
    model = make_model(learning_rate=lambda progress: 1e-3 if progress == 1 else bad)
    message = f"^learning_rate \\(of the schedule\\)={bad!r} must be a finite number >= 0"
    with pytest.raises(ValueError, match=message):
        model.learn(total_updates=2)
    assert model._n_updates == 1  # the second has the bad rate


def test_decays_of_the_learning_rate():
    assert [learning_rate_factor("constant", left) for left in (1, 0.25, 0)] == [1, 1, 1]
    assert [learning_rate_factor("linear", left) for left in (1, 0.25, 0)] == [1, 0.25, 0]
    cosine = [learning_rate_factor("cosine", left) for left in (1, 0.75, 0.5, 0)]
    assert cosine == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])
