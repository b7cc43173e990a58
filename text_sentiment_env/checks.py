"""The rules that arguments obey, each in one place; every error names argument, value and fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

LARGEST_INT = int(np.iinfo(np.int64).max)
LARGEST_FLOAT = float(np.finfo(np.float32).max)  # agents keep rewards as float32
RENDER_MODES = ("ansi", "human")


class RenderModeError(ValueError, TypeError):
    """A render mode that a text doesn't have.

    It is a TypeError too, because stable-baselines3's `make_vec_env` first asks every environment
    for `"rgb_array"` and tries again without it only after a TypeError.
    """


# ------------------------------------------------------------------------------------ single values


def whole_number(name: str, value: Any, least: int, most: int = LARGEST_INT) -> int:
    """An integer in [least, most], Python's or NumPy's; bools are refused."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
    if value > most:
        raise ValueError(f"{name}={value!r} is too large: use a whole number up to {most}")
    return int(value)


def whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    """Integers of at least 0."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name}={values!r} must be a list of whole numbers")
    return tuple(whole_number(name, value, 0) for value in values)


def weight(name: str, value: Any) -> float:
    """The weight of a penalty: a number in [0, 1e30], so that rewards stay finite as float32."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not 0 <= value <= 1e30:
        raise ValueError(f"{name}={value!r} must be a number in [0, 1e30]; 0 switches it off")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """A bool, Python's or NumPy's: the string "False" and the number 0 are refused."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r} must be True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
    return value


def text(name: str, value: Any) -> str:
    """A string without lone surrogates, which are no characters and have no UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}={value!r} holds the lone surrogate {value[error.start]!r}, which is no"
            " character: decode the text with errors='replace', or remove it"
        ) from None
    return value


def seed(name: str, value: Any, most: int | None = None) -> int | None:
    """A seed: None or a whole number of at least 0, of any size or up to `most`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name}={value!r} must be None or a whole number of at least 0")
    if most is not None and value > most:
        raise ValueError(f"{name}={value!r} is too large: use a whole number up to {most}")
    return int(value)


def render_mode(value: Any) -> str | None:
    """None, `"ansi"` or `"human"`, or a `RenderModeError`."""
    if value is None or (isinstance(value, str) and value in RENDER_MODES):
        return value
    raise RenderModeError(f"render_mode={value!r} must be None or one of {RENDER_MODES}")


def torch_device(value: Any) -> torch.device:
    """A device that this machine has; `"auto"` is the first GPU, or the CPU without one."""
    import torch

    try:
        if value == "auto":
            value = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(value)
        torch.empty(0, device=device)  # fails on a device that is missing
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device={value!r} can't be used: pass 'auto', 'cpu' or a GPU of this machine ('cuda')."
            f" {error}"
        ) from None
    return device


def torch_dtype(value: Any) -> torch.dtype:
    """A floating-point type of PyTorch, itself or its name."""
    import torch

    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={value!r} must be 'float32', 'bfloat16' or 'float16'")
    return dtype


# ------------------------------------------------------------------------------------- collections


def sequence(name: str, values: Any, count: int | None = None, kind: str = "a list") -> list[Any]:
    """The items of a list, tuple or one-dimensional array.

    Strings and bytes are refused, although Python can iterate over them. So are sets, because
    their order changes from one process to the next.

    Args:
        name: the argument.
        values: its value.
        count: the number of items that it must have; None: any.
        kind: the values that the argument allows, for the error.
    """
    items = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(items, AbstractSet | Mapping):
        raise ValueError(f"{name}={values!r} has no order to rely on: it must be {kind}")
    if not isinstance(items, Sequence) or isinstance(items, str | bytes | bytearray | memoryview):
        raise ValueError(f"{name}={values!r} must be {kind}")
    if count is not None and len(items) != count:
        raise ValueError(f"{name}={values!r} must be {kind} of {count}, got {len(items)}")
    return list(items)


def texts(name: str, values: Any, kind: str) -> list[str]:
    """A list of strings, each without lone surrogates; `kind` as in `sequence`."""
    items = sequence(name, values, kind=kind)
    return [text(f"{name}[{i}]", value) for i, value in enumerate(items)]


def seeds(value: Any, count: int) -> list[int | None]:
    """One seed a row: s, s + 1, ... of a whole number s, or the items of a list of `count`."""
    if value is None or isinstance(value, int | np.integer):
        first = seed("seed", value)
        return [None if first is None else first + row for row in range(count)]
    items = sequence("seed", value, count, "None, a whole number or a list")
    return [seed(f"seed[{i}]", item) for i, item in enumerate(items)]


def prompts(value: Any, count: int) -> list[str | None]:
    """One prompt a row, None where it is to be drawn: a string for all rows, or a list of `count`."""
    if value is None or isinstance(value, str):
        return [value] * count
    return sequence("options['prompt']", value, count, "None, a string or a list")


def reset_mask(value: Any, count: int) -> npt.NDArray[np.bool_]:
    """A mask bool (count,) with at least one True; None selects all rows."""
    if value is None:
        return np.ones(count, bool)
    try:
        mask = np.asarray(value)
    except ValueError:  # a ragged list
        mask = np.zeros(0, bool)
    if mask.dtype != bool or mask.shape != (count,) or not mask.any():
        raise ValueError(
            f"options['reset_mask']={value!r} must be a bool array of shape ({count},) with at"
            " least one True"
        )
    return mask


def length_range(name: str, value: Any) -> tuple[int, int]:
    """Two whole numbers (lo, hi) with 0 <= lo <= hi."""
    try:
        low, high = (whole_number(name, bound, 0) for bound in sequence(name, value, 2))
    except ValueError:
        low, high = 1, 0
    if low > high:
        raise ValueError(f"{name}={value!r} must be two whole numbers (lo, hi) with 0 <= lo <= hi")
    return low, high


def named_functions(
    name: str, value: Any, reserved: Sequence[str]
) -> dict[str, Callable[[list[str]], npt.ArrayLike]]:
    """A mapping from names, none of them reserved, to callables; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name}={value!r} must be None or a mapping of name to a callable list[str] -> floats"
        )
    for key, function in value.items():
        if not isinstance(key, str) or key in reserved or key.startswith("_") or "." in key:
            raise ValueError(
                f"{name} holds the name {key!r}: use a string without '.' that doesn't begin with '_'"
                f" and is none of {', '.join(reserved)}"
            )
        if not callable(function):
            raise ValueError(f"{name}[{key!r}]={function!r} must be a callable list[str] -> floats")
    return dict(value)


def options(value: Any, known: Sequence[str]) -> dict[str, Any]:
    """The options of `reset`: None or a mapping whose keys are all known."""
    if value is None:
        return {}
    keys = ", ".join(map(repr, known))
    if not isinstance(value, Mapping):
        raise ValueError(f"options={value!r} must be None or a dict with the keys {keys}")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"reset options {unknown} are unknown: use {keys}")
    return dict(value)


# ------------------------------------------------------------------------------- arrays and memory


def scores(
    name: str, values: npt.ArrayLike, count: int, largest: float = LARGEST_FLOAT
) -> npt.NDArray[np.float64]:
    """The scores that a judge or a reward term returned, as a new float64 array (count,).

    Args:
        name: the function that returned them.
        values: its result: numbers, one a text.
        count: the number of texts.
        largest: the scores lie in [-largest, largest]; those beyond by rounding are clipped.

    Raises:
        ValueError: for another shape, for items that aren't numbers, and for nan or inf.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors of some kinds
        raise ValueError(
            f"{name} returned a {type(values).__name__} that can't be read as an array: return a"
            f" float64 array of shape ({count},) (of a tensor, .float().cpu().numpy()). {error}"
        ) from None
    if array.dtype.kind not in "fiub":  # NumPy would make numbers of strings, and nan of None
        raise ValueError(
            f"{name} returned an array of type {array.dtype}: it must return floats, one a text"
        )
    if array.shape != (count,):
        raise ValueError(
            f"{name} returned an array of shape {array.shape} for {count} texts: it must return"
            f" one float a text, shape ({count},)"
        )
    floats = array.astype(np.float64)
    low, high = np.minimum.reduce(floats), np.maximum.reduce(floats)  # half the cost of .min()
    if -largest <= low and high <= largest:  # neither is nan
        return floats
    finite = np.isfinite(floats)
    if not finite.all():
        bad = int(finite.argmin())
        raise ValueError(f"{name} returned {floats[bad]} for text {bad} of {count}: must be finite")
    worst = floats[np.abs(floats).argmax()]
    if abs(worst) > largest + 1e-6:  # more than rounding
        advice = " (P(positive) - P(negative), or tanh of a logit)" if largest == 1 else ""
        raise ValueError(
            f"{name} returned {worst}: scores must lie in [{-largest:g}, {largest:g}]{advice}"
        )
    return floats.clip(-largest, largest)


def memory(name: str, value: int, rows: int, width: int) -> None:
    """Refuses observations that the machine's memory can't hold.

    NumPy alone might be granted the memory, and the system would end the process when it is filled.

    Args:
        name: the argument that makes them large.
        value: its value.
        rows: texts side by side, B.
        width: the tokens of an observation, L.
    """
    # Measured: a generator for each row; for each token an observation, its copy and the bounds.
    size, machine = rows * (1200 + 40 * width), _machine_memory()
    if size > machine:
        raise ValueError(
            f"{name}={value} would take {size / 2**30:,.0f} GiB of memory, more than this machine's"
            f" {machine / 2**30:,.0f} GiB: choose a smaller {name}"
        )


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows doesn't say
        return 2**40
