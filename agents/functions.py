"""Functions of the user's own code, which the command line names as `module:function`.

To load one is to run its module. So a name that only a run's record holds is not loaded by itself:
`--resume` wants it repeated, and the commands on a run want `--trust`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
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


def with_functions(values: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's arguments with functions in place of their names.

    Raises:
        ValueError: for a function that cannot be loaded.
    """
    judge = values["sentiment_model"]
    if isinstance(judge, str) and is_function(judge):
        judge = load_function("--sentiment-model", judge)
    terms = load_terms(values["extra_terms"])
    return {**values, "sentiment_model": judge, "extra_terms": terms}


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
