"""The command line of a training run."""

import json
import os
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from agents import REINFORCE
from agents.arguments import PRESETS, RESUMABLE, Args, ReinforceArgs, RunArgs, parse_arguments


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *argv):
    """The error of a command line that is refused, in one line and with status 2."""
    with pytest.raises(SystemExit) as error:
        parse_arguments(argv)
    assert error.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def make_run(folder, argv=()):
    """A folder as a run leaves it, without the run."""
    arguments = {
        k: v for k, v in parse_arguments(argv).flat().items() if k not in ("out", "resume")
    }
    folder.mkdir()
    (folder / "checkpoint.zip").touch()
    (folder / "arguments.json").write_text(json.dumps(arguments | {"changes": []}))
    return arguments


def test_choices_are_the_presets():
    assert get_args(get_type_hints(RunArgs)["preset"]) == tuple(PRESETS)


def test_every_argument_of_the_agent_has_a_flag():
    assert {f.name for f in fields(ReinforceArgs)} | {"seed"} == set(REINFORCE.ARGUMENTS)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_defaults_of_all_other_flags(preset):
    args = parse_arguments(["--preset", preset])
    out = os.path.join("runs", f"{preset}-seed0")
    assert args.flat() == PRESETS[preset].flat() | {"out": out}
    args = parse_arguments(["--preset", preset, "--num-envs", "16", "--target-length", "3", "5"])
    assert (args.environment.num_envs, args.environment.target_length) == (16, (3, 5))
    assert PRESETS[preset].environment.num_envs != 16


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--updates", "0"], "--updates 0: must be at least 1"),
        (["--start-episodes", "-1"], "--start-episodes -1: must be at least 0"),
        (["--initial-length", "4"], "--initial-length 4.0: only for --model random"),
        (["--n-layer", "3"], "--n-layer 3: only for --model random"),
        (["--model", "gpt2", "--n-head", "2"], "--n-head 2: only for --model random"),
        (["--n-embd", "64"], "--n-embd 64: only for --model random"),
        (["--keep", "0"], "--keep 0: must be at least 1"),
        (["--adam-eps", "0"], "--adam-eps 0.0: must be above 0"),
        (["--num-envs", "-3"], "--num-envs -3: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must lie in [0, 2**32)"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds no such device"),
        (["--device", "quantum"], "--device quantum: torch finds no such device"),
        (["--learning-rate", "fast"], "--learning-rate"),
        (["--baseline", "best"], "'best'"),
        (["--resume"], "--resume: runs/reviews-seed0 holds no run with a checkpoint"),
        (["--n-layer", "1.5"], "--n-layer"),
        (["--target-length", "8"], "--target-length"),
        (["--update", "3"], "--update"),
    ],
)
def test_refused(argv, message, capsys):
    assert message in fails(capsys, *argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(capsys):
    assert "--device cuda: torch finds no such device; use auto, cpu" in fails(
        capsys, "--device", "cuda"
    )


def test_tensorboard_must_be_installed(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install tensorboard" in fails(capsys, "--tensorboard")


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_tracker_must_be_installed(package, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    line = fails(capsys, "--track", package)
    assert line == f'error: {package} is missing: pip install -e ".[track]" brings it'
    assert "--track" in fails(capsys, "--track", "mlflow")


# ------------------------------------------------------------------------------------------- resume


def test_resume_takes_the_recorded_flags(tmp_path):
    out = tmp_path / "run"
    started = make_run(
        out, ["--preset", "scratch", "--kl-coef", "0.5", "--target-length", "2", "9"]
    )
    args = parse_arguments(["--out", str(out), "--resume"])
    assert args.flat() == started | {"out": str(out), "resume": True}


def test_a_run_from_before_useless_sizes_were_refused_goes_on(tmp_path):
    recorded = make_run(tmp_path / "run") | {"n_layer": 3}
    (tmp_path / "run" / "arguments.json").write_text(json.dumps(recorded))
    assert parse_arguments(["--out", str(tmp_path / "run"), "--resume"]).start.n_layer == 3


def test_resume_finds_the_latest_run(tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("small-seed3", "small-seed3-2"):
        make_run(tmp_path / "runs" / name, ["--preset", "small", "--seed", "3"])
    args = parse_arguments(["--resume", "--preset", "small", "--seed", "3"])
    assert args.run.out == os.path.join("runs", "small-seed3-2")


CHANGES = {
    **{"updates": "999", "save_every": "7", "keep": "3", "eval_episodes": "5", "device": "cpu"},
    **{"parallel": "fsdp", "micro_batch_size": "4", "tensorboard": None, "quiet": None},
    **{"start_episodes": "9", "track": "trackio"},
}


def test_flags_of_the_run_may_change(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    assert CHANGES.keys() | {"out", "resume"} == RESUMABLE
    make_run(tmp_path / "run")
    argv = ["--out", str(tmp_path / "run"), "--resume"]
    for name, value in CHANGES.items():
        argv += [f"--{name.replace('_', '-')}", *([] if value is None else [value])]
    args = parse_arguments(argv).flat()
    assert {name: str(args[name]) for name in CHANGES} == {
        name: value or "True" for name, value in CHANGES.items()
    }


OTHERS = {
    **{"preset": "small", "seed": "1", "num_envs": "32", "vocabulary": "small", "prompts": "x"},
    **{"max_tokens": "10", "sentiment_model": "vader", "reward_type": "binary"},
    **{"target": "negative", "length_penalty": "0.1", "target_length": ("1", "2")},
    **{"repetition_penalty": "0.1", "model": "gpt2", "n_layer": "1", "n_head": "2"},
    **{
        "initial_length": "4.0",
        "n_embd": "64",
        "precision": "bf16",
        "cuda_graphs": False,
        "compile": None,
        "learning_rate": "1e-09",
    },
    **{
        "lr_decay": "linear",
        "warmup_updates": "3",
        "adam_eps": "1e-05",
        "gamma": "0.5",
        "baseline": "ema",
    },
    **{"group_size": "8", "normalize_advantage": None, "ent_coef": "0.1", "vf_coef": "0.1"},
    **{"kl_coef": "5.0", "kl_estimator": "k3", "max_grad_norm": "9.0"},
    "extra_terms": ("film=terms:film",),
}


def test_all_other_flags_are_named():
    assert OTHERS.keys() == Args().flat().keys() - RESUMABLE


@pytest.mark.parametrize("name", OTHERS)
def test_flags_that_would_alter_the_task_are_refused_by_name(name, tmp_path, capsys):
    started, value = make_run(tmp_path / "run"), OTHERS[name]
    flag = "--" + name.replace("_", "-")
    given = flag.replace("--", "--no-") if value is False else flag
    values = () if not value else (value,) if isinstance(value, str) else value
    line = fails(capsys, "--out", str(tmp_path / "run"), "--resume", given, *values)
    assert f"error: {flag} " in line
    assert f"cannot change it from {started[name]}, with which" in line


def test_files_are_recorded_so_that_any_working_directory_finds_them(tmp_path, monkeypatch):
    (tmp_path / "openings.txt").write_text("I think")
    (tmp_path / "gpt2").mkdir()
    files = ["--prompts", "openings.txt", "--model", "gpt2"]
    recorded = make_run(tmp_path / "run", files)
    assert recorded["prompts"] == str(tmp_path / "openings.txt")
    assert recorded["model"] == str(tmp_path / "gpt2")
    assert recorded["sentiment_model"] == "bundled"
    args = parse_arguments(["--out", "run", "--resume", *files]).flat()  # the same, no change
    assert args["prompts"] == recorded["prompts"]
    monkeypatch.chdir("/")
    assert parse_arguments(["--out", str(tmp_path / "run"), "--resume"]).flat() == args | {
        "out": str(tmp_path / "run")
    }


def test_a_flag_with_its_recorded_value_is_no_change(tmp_path):
    make_run(tmp_path / "run", ["--kl-coef", "0.5"])
    recorded = [str(n) for n in PRESETS["reviews"].environment.target_length]
    argv = ["--out", str(tmp_path / "run"), "--resume", "--kl-coef", "0.5"]
    assert parse_arguments([*argv, "--target-length", *recorded]).reinforce.kl_coef == 0.5


def test_a_damaged_record_is_named(tmp_path, capsys):
    make_run(tmp_path / "run")
    for text, message in (
        ("", "arguments.json is damaged"),
        ('{"updates": "many"}', "--updates"),
        ('{"from_the_future": 1}', "--from-the-future"),
    ):
        (tmp_path / "run" / "arguments.json").write_text(text)
        assert message in fails(capsys, "--out", str(tmp_path / "run"), "--resume")


# --------------------------------------------------------------------------------------------- fuzz

WORDS = [
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "10" * 30,
    "",
    " ",
    "None",
    "True",
    "é\ud800",
    "\0",
    "--",
]
NAMES = ["--" + name.replace("_", "-") for name in Args().flat() if name != "prompts"]
TOKENS = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).map(lambda name: "--no" + name[1:]),
    st.sampled_from([*WORDS, *PRESETS, "cpu", "cuda", "=", "-", "---", "-x"]),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=5),
)


@seed(0)
@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(TOKENS, max_size=6))
@example(["--resume", "--out", "\0"])
@example(["--out", ""])
def test_any_command_line_is_parsed_or_refused_in_one_line(capsys, argv):
    try:
        args = parse_arguments(argv)
    except SystemExit as error:
        status = error.code
    else:
        assert args.environment.num_envs > 0
        return
    printed = capsys.readouterr()
    if status:  # 0: --help
        assert status == 2
        [line] = printed.err.splitlines()
        assert line.startswith("error: ")
