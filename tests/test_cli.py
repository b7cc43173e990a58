"""Command lines: flags of a dataclass, and errors in one line."""

import os
import pty
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents import cli


@dataclass
class Part:
    target_length: tuple[int, int] = (8, 20)
    """two numbers"""


@dataclass
class Args:
    out: str | None = None
    """a folder"""
    loud: bool = True
    """a switch"""
    rate: float = 0.1
    """a number"""
    part: Part = field(default_factory=Part)


def test_flags_of_nested_groups_have_no_prefix():
    args = cli.parse(Args, ["--target-length", "1", "2", "--no-loud", "--rate=-1e-3"])
    assert args == Args(None, False, -1e-3, Part((1, 2)))


def test_the_default_is_not_changed():
    default = Args("x")
    args = cli.parse(Args, [], default=default)
    assert args == default
    args.part.target_length = (0, 0)
    assert default == Args("x")


@dataclass
class Program:
    steps: int = 1000
    """of training"""
    rate: float = 0.1
    """a number"""
    smoke: bool = False
    """other defaults"""


def test_smoke_changes_defaults_and_no_flag_that_is_given():
    smoke = Program(steps=2, smoke=True)
    assert cli.parse(Program, ["--rate=0.5"], smoke=smoke) == Program(rate=0.5)
    assert cli.parse(Program, ["--smoke", "--rate=0.5"], smoke=smoke) == Program(2, 0.5, True)
    assert cli.parse(Program, ["--steps=1000", "--smoke"], smoke=smoke) == Program(smoke=True)


def test_values_become_arguments_and_back():
    values = {"out": "--strange", "loud": False, "rate": 1 / 3, "target_length": [3, 4]}
    assert cli.from_values(Args, values) == Args("--strange", False, 1 / 3, Part((3, 4)))
    with pytest.raises(ValueError, match="--rate"):
        cli.from_values(Args, {"rate": "fast"})
    with pytest.raises(ValueError, match="--unknown"):
        cli.from_values(Args, {"unknown": 1})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rate", "x"], "--rate: could not convert string to float: 'x'"),
        (["--unknown", "1"], "--unknown"),
        (["--rat", "1"], "--rat, 1; perhaps you meant --rate; see --help"),
        (["--target-length", "1"], "--target-length"),
        (["--out"], "--out"),
        (["stray"], "stray"),
        (["--rate", "y" * 300], "yyy"),
    ],
)
def test_malformed_flags(argv, message):
    with pytest.raises(ValueError, match="; see --help") as error:
        cli.parse(Args, argv)
    text = str(error.value)
    assert message in text
    assert not {"\n", "│", "─", "╭"} & set(text)


def test_a_reader_of_the_output_that_ends_early_is_no_error():
    code = (
        "from agents import cli\n"
        "cli.errors_in_one_line(lambda: [print('x' * 1000) for _ in range(1000)])()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as program:
        program.stdout.read(1)
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 141  # as of a program that SIGPIPE ends


def test_an_error_in_a_terminal_has_no_colours():
    code = (
        "from agents import cli; from dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    rate: float = 1.0\n"
        "cli.errors_in_one_line(lambda: cli.parse(A, ['--rate', 'x']))()"
    )
    main, other = pty.openpty()  # tyro colours when its output is a terminal
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=other, stderr=subprocess.PIPE, env=environment
    )
    os.close(main)
    os.close(other)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: Error parsing --rate")
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("a\n  b"), 2),
        (FileNotFoundError(2, "No such file", "x"), 2),
        (MemoryError(), 2),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), 2),
        (FloatingPointError("nan"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_end_in_one_line(error, status, capsys):
    @cli.errors_in_one_line
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_mistake_in_the_program_keeps_its_traceback():
    @cli.errors_in_one_line
    def main():
        raise AttributeError("a mistake")

    with pytest.raises(AttributeError):
        main()


@pytest.mark.parametrize("name", ["cuda:77", "meta", "gpu", "", "cpu:x"])
def test_devices_that_are_not_there(name):
    with pytest.raises(
        ValueError, match=f"--device {name}: torch finds no such device; use auto, cpu"
    ):
        cli.check_device(name)
