"""Train a model, and everything one wants to do with it afterwards.

    python -m agents train                    # the main program; flags as examples/train_reinforce.py
    python -m agents generate runs/mine "I think" -n 5
    python -m agents evaluate runs/mine --episodes 1000
    python -m agents compare runs/a runs/b    # table and figure
    python -m agents play runs/mine           # write a text by hand, token by token
    python -m agents watch runs/mine          # a run that is under way
    python -m agents report runs/mine         # its page report.html, drawn again
    python -m agents info                     # for a bug report

RUN is a run's folder, a checkpoint, a directory in Hugging Face's format, or reviews. With --trust it may also
be a zip that PPO, A2C or another algorithm of stable-baselines3 with a GPT2Policy has saved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from agents import cli
from agents.commands import Evaluate, Generate, Info, Play, Report, Watch
from agents.compare import Compare


@dataclass
class Train:
    """Train a model: the main program. `train --help` shows its flags."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]  # for --help: `main` calls the program itself
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Play, tyro.conf.subcommand("play")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:
        from agents import training

        return training.main(argv[1:], training.__doc__)
    cli.parse(Command, argv or ["--help"], __doc__)()  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
