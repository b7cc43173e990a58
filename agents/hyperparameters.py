"""The hyperparameters of REINFORCE: choices, checks and the learning rate's decay.

Every error message names the argument, its value and the fix.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal, get_args

from agents.advantages import BASELINES
from agents.distributed import Parallel
from text_sentiment_env import checks

KLEstimator = Literal["k1", "k3", "exact"]
LRDecay = Literal["constant", "linear", "cosine"]
HYPERPARAMETERS = (
    "learning_rate",
    "gamma",
    "baseline",
    "group_size",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "kl_coef",
    "kl_estimator",
    "max_grad_norm",
    "lr_decay",
    "warmup_updates",
    "micro_batch_size",
    "seed",
)
LOAD_ARGUMENTS = (  # which `load` takes beside them; a checkpoint keeps none of them
    "parallel",
    "stats_window_size",
    "tensorboard_log",
    "verbose",
    "optimizer_class",
)


def check_number(
    name: str, value: Any, minimum: float, maximum: float = math.inf, *, exclusive: bool = False
) -> None:
    """Raises ValueError unless `value` is a finite number from `minimum` to `maximum`.

    Args:
        name: of the argument.
        value: anything.
        minimum: the least value; `exclusive`: the value must be above.
        maximum: the largest value.
        exclusive: see `minimum`.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    above = number and (value > minimum if exclusive else value >= minimum)
    if not above or not value <= maximum or not math.isfinite(value):
        limits = f"{'> ' if exclusive else '>= '}{minimum:g}"
        limits += f" and <= {maximum:g}" if maximum < math.inf else ""
        raise ValueError(f"{name}={value!r} must be a finite number {limits}")


def check_integer(name: str, value: Any, minimum: int, *, none: bool = False) -> None:
    """Raises ValueError unless `value` is a whole number of at least `minimum`, or None if `none`."""
    if value is None and none:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(
            f"{name}={value!r} must be at least {minimum}, a whole number{', or None' * none}"
        )


def check_bounds(total_timesteps: float | None, total_updates: int | None) -> int:
    """The tokens after which `learn` ends, where one of its bounds may be None.

    Raises:
        ValueError: for a bound that is no whole number, and if there is none.
    """
    if total_timesteps is None and total_updates is None:
        raise ValueError("learn() has no end: pass total_timesteps or total_updates")
    if isinstance(total_timesteps, float) and total_timesteps.is_integer():
        total_timesteps = int(total_timesteps)  # 1e5 is 100,000
    check_integer("total_timesteps", total_timesteps, 0, none=True)
    check_integer("total_updates", total_updates, 0, none=True)
    return 10**15 if total_timesteps is None else int(total_timesteps)  # more than anybody writes


def check_hyperparameters(arguments: dict[str, Any]) -> None:
    """Checks the arguments of REINFORCE, by their names.

    Raises:
        ValueError: for the first one out of range.
    """
    get = arguments.__getitem__
    checks.one_of("baseline", get("baseline"), ("auto", *BASELINES))
    checks.one_of("kl_estimator", get("kl_estimator"), get_args(KLEstimator))
    checks.one_of("lr_decay", get("lr_decay"), get_args(LRDecay))
    checks.one_of("parallel", get("parallel"), get_args(Parallel))
    for name in ("ent_coef", "vf_coef", "kl_coef"):
        check_number(name, get(name), 0, 1e18)  # above, a whole number fits no tensor
    if not callable(get("learning_rate")):
        check_number("learning_rate", get("learning_rate"), 0)
    check_number("gamma", get("gamma"), 0, 1)
    check_number("max_grad_norm", get("max_grad_norm"), 0, exclusive=True)
    check_integer("warmup_updates", get("warmup_updates"), 0)
    check_integer("stats_window_size", get("stats_window_size"), 1)
    if (seed := get("seed")) is not None:
        checks.whole_number("seed", seed, 0, 2**32 - 1)  # NumPy's and SB3's range
    for name, minimum in (("group_size", 2), ("micro_batch_size", 1)):
        check_integer(name, get(name), minimum, none=True)
    checks.boolean("normalize_advantage", get("normalize_advantage"))


def learning_rate_factor(decay: LRDecay, progress_remaining: float) -> float:
    """The factor of the learning rate under this decay, for a progress from 1 to 0."""
    if decay == "linear":
        return progress_remaining
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (1 - progress_remaining)))
    return 1.0
