"""Functions of the user's own code, which the command line names as `module:function`.

To name one is to run its module. So a recorded name is not run by itself: `--resume` and the commands
on a run ask for the name again.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

_NAME = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"


def is_function(value: str) -> bool:
    """Whether a flag's value has the form `module:function`."""
    return re.fullmatch(_NAME, value) is not None


def load_function(flag: str, value: str) -> Callable[..., Any]:
    """The function `module:function`, of an installed module or of one in the working directory.

    Raises:
        ValueError: naming the flag, if there is no such module or function.
    """
    module, _, name = value.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{flag} {value}: {error}; name a function of a module that is installed or in this folder"
        ) from error
    if not callable(function):
        raise ValueError(f"{flag} {value}: it is no function, but {function!r}")
    return function


def load_terms(values: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The reward terms of `--extra-terms`, each `NAME=module:function`, by name.

    Raises:
        ValueError: for a value of another form.
    """
    terms = {}
    for value in values:
        name, _, function = value.partition("=")
        if not name or not is_function(function) or name in terms:
            raise ValueError(
                f"--extra-terms {value}: each must be NAME=module:function, with names of their own"
            )
        terms[name] = load_function("--extra-terms", function)
    return terms
