"""Command lines: a dataclass defines the flags, and bad input ends in one line.

@dataclass
class Args:
    seed: int = 0
    \"\"\"seed of everything random\"\"\"

@cli.errors_in_one_line
def main(argv=None):
    args = cli.parse(Args, argv, __doc__)
"""

from __future__ import annotations

import copy
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gymnasium as gym
import torch
import tyro

T = TypeVar("T")
P = ParamSpec("P")

# What the library raises for bad input. ModuleNotFoundError: an extra that is not installed.
BAD_INPUT = (ValueError, OSError, MemoryError, OverflowError, ModuleNotFoundError, gym.error.Error)

# The extra that brings a package.
EXTRAS = {
    **dict.fromkeys(("ray", "sb3_contrib", "tensordict", "torchrl", "skrl", "tianshou"), "plug"),
    **dict.fromkeys(("accelerate", "datasets", "trl"), "plug"),
    **dict.fromkeys(("openenv", "uvicorn", "fastapi"), "openenv"),
    **dict.fromkeys(("trackio", "wandb"), "track"),
}


def parse(
    arguments: type[T],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    default: T | None = None,
    smoke: T | None = None,
) -> T:
    """Reads flags into a dataclass; `--help` prints and exits.

    Args:
        arguments: the class; its fields are the flags, and nested dataclasses are groups of them.
        argv: the command line; None: this program's.
        description: text above the flags in `--help`.
        default: the flags' defaults; None: the class's.
        smoke: the defaults where `--smoke` is among the flags, for a run of seconds.

    Raises:
        ValueError: for flags that are unknown or malformed.
    """
    args = _parse(arguments, argv, description, default)
    if smoke is not None and vars(args)["smoke"]:
        return _parse(arguments, argv, description, smoke)
    return args


def _parse(
    arguments: type[T], argv: Sequence[str] | None, description: str | None, default: T | None
) -> T:
    printed = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": copy.deepcopy(default)}
    try:
        with redirect_stderr(printed):
            return tyro.cli(
                arguments,
                prog=_program(),
                args=argv,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                **options,
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise ValueError(_unboxed(printed.getvalue())) from None


def _program() -> str:
    """How this program was called: `frontier.py`, `python -m agents` or `python -m agents train`."""
    path = Path(sys.argv[0])
    name = f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name
    # The one command that has a parser of its own.
    return f"{name} train" if sys.argv[1:2] == ["train"] else name


def _unboxed(box: str) -> str:
    """The first section of an error that tyro has drawn as a box, in one line, and what it proposes."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours
    _title, *rows = (row.strip("│ ") for row in plain.splitlines() if row.strip())
    is_rule = [set(row) <= set("─-╰╯") for row in rows]
    first = is_rule.index(False)
    last = is_rule.index(True, first) if True in is_rule[first:] else len(rows)
    error = " ".join(rows[first:last]).removesuffix(".")
    if "Perhaps you meant:" in rows:
        proposed = [row.split()[0] for row in rows if row.startswith("--")]
        error += f"; perhaps you meant {' or '.join(dict.fromkeys(proposed))}"
    return f"{error}; see --help"


def from_values(arguments: type[T], values: Mapping[str, Any]) -> T:
    """Like `parse`, from values by field name; their types are checked as a command line's are."""
    return parse(arguments, to_argv(values))


def to_argv(values: Mapping[str, Any]) -> list[str]:
    """The command line that sets flags to these values, by field name."""
    argv: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            argv.append(flag(name) if value else flag(f"no_{name}"))
        elif isinstance(value, list | tuple):
            argv += [flag(name), *map(str, value)]
        else:
            argv.append(f"{flag(name)}={value}")
    return argv


def positive(arguments: Any, *names: str) -> None:
    """Refuses flags below 1.

    Raises:
        ValueError: naming the flag and its value.
    """
    at_least(1, arguments, *names)


def at_least(least: int, arguments: Any, *names: str) -> None:
    """Refuses flags below `least`.

    Raises:
        ValueError: naming the flag and its value.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"{flag(name)} {value}: must be at least {least}")


def check_seed(seed: int) -> None:
    """Refuses a --seed that NumPy's or torch's generators would.

    Raises:
        ValueError: naming its value.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed}: must lie in [0, 2**32)")


def prepare_folder(name: str, path: Path) -> None:
    """Makes the folder of the file that a flag names, before the work that the file is to hold.

    Raises:
        ValueError: naming the flag and its value, if there can be no such file.
    """
    with writing(name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextmanager
def writing(name: str, path: Path) -> Iterator[None]:
    """Within, an error about the file that a flag names becomes a ValueError that names the flag."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{flag(name)} {path}: {error.strerror or error}; name a file that can be written"
        ) from None


def flag(name: str) -> str:
    """The flag of a field: `--num-envs` of `num_envs`."""
    return "--" + name.replace("_", "-")


def check_device(name: str) -> None:
    """Refuses a device that is not there, on which torch would fail later or use another.

    Raises:
        ValueError: naming the device.
    """
    if name in ("auto", "cpu"):
        return
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    there = [] if accelerator is None else [accelerator.type]
    there += [f"{kind}:{i}" for kind in there for i in range(torch.accelerator.device_count())]
    if name not in there:
        raise ValueError(
            f"--device {name}: torch finds no such device; use {', '.join(['auto', 'cpu', *there])}"
        )


def errors_in_one_line(main: Callable[P, T]) -> Callable[P, T]:
    """Makes bad input end a program with `error: …` on stderr and status 2, without a traceback.

    Numbers that overflow in training end with status 1, Ctrl-C with 130. `python -X dev` shows the
    traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return main(*args, **kwargs)
        except (*BAD_INPUT, FloatingPointError, KeyboardInterrupt) as error:
            if sys.flags.dev_mode:
                raise
            if isinstance(error, BrokenPipeError):  # the output's reader, such as `head`, has ended
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(141) from None
            if isinstance(error, KeyboardInterrupt):
                print("interrupted", file=sys.stderr)
                raise SystemExit(130) from None
            print(f"error: {_message(error)}", file=sys.stderr)
            raise SystemExit(1 if isinstance(error, FloatingPointError) else 2) from None

    return wrapped


def _message(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package)
        fix = f'pip install -e ".[{extra}]" brings it' if extra else f"pip install {package}"
        return f"{package} is missing: {fix}"
    text = str(error) or type(error).__name__
    text = text.encode(errors="backslashreplace").decode()  # lone surrogates cannot be printed
    return re.sub(r"\s+", " ", text).strip()
