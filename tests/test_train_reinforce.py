import csv
import json
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from agents import GPT2, REINFORCE, commands, training
from agents.arguments import PRESETS
from agents.callbacks import read_rows
from agents.frontier import Frontier
from agents.runs import RunFolder

ROOT = Path(__file__).parents[1]

SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "8", "--max-tokens", "6"),
    *("--eval-episodes", "16", "--start-episodes", "96"),
    *("--model", "random", "--sentiment-model", "vader", "--quiet"),
    *("--vocabulary", "small", "--kl-coef", "1", "--lr-decay", "linear"),
]
# Only a random model takes another one.
DEFAULT_SIZE = ["--n-layer", "2", "--n-embd", "128", "--n-head", "4"]


def run(out, *arguments):
    return training.main([*SMALL, "--out", str(out), *arguments])


def rows(out):
    with open(out / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def episodes(out):
    """The rows of monitor.csv without their times."""
    read = read_rows(out / "monitor.csv", "update")
    return [{name: value for name, value in row.items() if name != "t"} for row in read]


def tensors(out):
    with zipfile.ZipFile(out / "checkpoint.zip") as archive:
        return {n: archive.read(n) for n in archive.namelist() if n.endswith(".safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(out, "--updates", "4", "--save-every", "3") == 0
    return out


@pytest.fixture(autouse=True)
def no_drawing(finished, monkeypatch):
    """Of all runs but the finished one, because drawing takes longer than they do."""
    monkeypatch.setattr(training.page, "write", lambda folder, judge: None)


def test_writes_everything(finished):
    assert {
        "arguments.json", "checkpoint.zip", "checkpoint-1.zip", "evaluation.png", "gpt2",
        "learning_curves.png", "monitor.csv", "progress.csv", "report.html", "samples.jsonl",
        "samples.md", "start_texts.npz", "summary.json",
    } == {p.name for p in finished.iterdir()}  # fmt: skip
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["updates"] == 4
    assert summary["episodes"] == 32
    assert summary["tokens"] == sum(8 * float(r["rollout/ep_len_mean"]) for r in rows(finished))
    measures = {
        "reward", "sentiment", "length", "end_rate", "entropy", "kl", "distinct_1", "distinct_2",
        "perplexity", "distinct_texts", "gap", "win_rate",
    }  # fmt: skip
    for when in ("before", "after"):
        assert measures <= summary[when].keys()
    assert summary["before"]["kl"] == 0
    assert summary["after"]["kl"] > 0
    assert summary["arguments"]["seed"] == 0
    assert len(rows(finished)) == 4
    for name in ("learning_curves.png", "evaluation.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    table = (finished / "samples.md").read_text().splitlines()
    assert len([line for line in table if line.startswith("| +") or line.startswith("| -")]) == 16


def test_the_gap_is_that_to_the_optimum_of_the_recorded_start_texts(finished):
    summary = json.loads((finished / "summary.json").read_text())
    with np.load(finished / "start_texts.npz") as file:
        frontier = Frontier(file["reward"])
    optimum = summary["optimum"]
    assert optimum["kl"] == pytest.approx(frontier.optimum(1).kl)
    for when in ("before", "after"):
        measured = summary[when]
        value = measured["reward"] - measured["kl"]
        assert measured["gap"] == pytest.approx(frontier.value(1).value - value)


@pytest.mark.parametrize("flags", [("--kl-coef", "0"), ("--start-episodes", "0")])
def test_no_gap_without_kl_or_start_texts(tmp_path, flags):
    assert run(tmp_path / "run", "--updates", "1", *flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "optimum" not in summary
    assert "gap" not in summary["after"]
    assert not (tmp_path / "run" / "start_texts.npz").exists()


def test_the_saved_model_is_the_policy(finished):
    gpt2 = GPT2.from_pretrained(finished / "gpt2")
    policy = REINFORCE.load(finished / "checkpoint.zip").policy
    assert torch.equal(gpt2.wte.weight, policy.gpt2.wte.weight)
    assert gpt2.token_ids == list(policy.config.token_ids)


def test_the_plotters_of_sb3_read_a_run(finished):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from stable_baselines3.common.monitor import load_results
    from stable_baselines3.common.results_plotter import X_TIMESTEPS, plot_results, ts2xy

    table = load_results(str(finished))
    assert [*table][1:5] == ["r", "l", "t", "update"]
    assert {"sentiment", "length", "length_penalty"} < {*table}
    tokens, returns = ts2xy(table, X_TIMESTEPS)
    summary = json.loads((finished / "summary.json").read_text())
    assert tokens[-1] == summary["tokens"]
    assert len(returns) == summary["episodes"]
    assert ((table.t >= 0) & (table.t < 600)).all()
    for row in rows(finished):
        batch = table[table["update"] == int(row["train/n_updates"])]
        assert batch.r.mean() == pytest.approx(float(row["rollout/ep_rew_mean"]), abs=1e-6)
        assert batch.sentiment.mean() == pytest.approx(float(row["rollout/sentiment"]))
    header = json.loads((finished / "monitor.csv").read_text().splitlines()[0][1:])
    assert header.keys() == {"t_start", "env_id"}
    plot_results([str(finished)], None, X_TIMESTEPS, "a run")
    plt.close("all")


def test_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch):
    """Killed behind the checkpoint of update 3 with a log that is further on."""
    save = RunFolder.save
    monkeypatch.setattr(
        RunFolder,
        "save",
        lambda self, model, keep: model._n_updates == 3 and save(self, model, keep),
    )
    assert run(tmp_path / "run", "--updates", "4", "--save-every", "3") == 0
    monkeypatch.undo()
    assert len(rows(tmp_path / "run")) == 4
    assert training.main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert tensors(tmp_path / "run") == tensors(finished)
    timeless = [
        [{k: v for k, v in row.items() if "time/" not in k or "total" in k} for row in rows(out)]
        for out in (tmp_path / "run", finished)
    ]
    assert timeless[0] == timeless[1]
    assert episodes(tmp_path / "run") == episodes(finished)
    summaries = [
        json.loads((out / "summary.json").read_text()) for out in (tmp_path / "run", finished)
    ]
    for when in ("before", "after"):
        assert summaries[0][when] == summaries[1][when]


def test_a_finished_run_can_be_prolonged(tmp_path):
    assert run(tmp_path / "run", "--updates", "1") == 0
    out = str(tmp_path / "run")
    assert training.main(["--out", out, "--resume", "--updates", "3"]) == 0
    assert [r["train/n_updates"] for r in rows(tmp_path / "run")] == ["1", "2", "3"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 3


def test_a_finished_run_that_is_resumed_keeps_its_times(tmp_path):
    run(tmp_path / "run", "--updates", "2")
    run(tmp_path / "run", "--updates", "3", "--resume")
    first = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    run(tmp_path / "run", "--updates", "3", "--resume")  # trains nothing
    again = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert first["tokens_per_second"] > 0
    for name in ("resumed_at", "seconds", "tokens_per_second"):
        assert again[name] == first[name]


@pytest.mark.parametrize("texts", ["a good film\na bad film\n", "a good film\n"])
def test_a_run_of_several_prompts_has_no_gap_and_says_so(texts, tmp_path, capsys):
    """π* over the texts of all prompts would write to the good ones more often."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(texts, "utf-8")
    run(tmp_path / "run", "--updates", "1", "--prompts", str(prompts), "--no-quiet")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    several = texts.count("\n") > 1
    assert ("optimum" in summary) == ("gap" in summary["after"]) == (not several)
    assert ("this run has 2" in capsys.readouterr().out) == several


def test_a_run_goes_on_with_the_prompts_it_began_with(tmp_path, monkeypatch):
    """The file may have changed since, or be in another folder than this start's."""
    monkeypatch.chdir(tmp_path)
    Path("openings.txt").write_text("a good\na bad\n")
    run(tmp_path / "run", "--updates", "1", "--prompts", "openings.txt")
    Path("openings.txt").write_text("the best\nthe worst\n")
    run(tmp_path / "run", "--updates", "2", "--resume")
    samples = (tmp_path / "run/samples.jsonl").read_text().splitlines()
    assert {json.loads(sample)["prompt"].strip() for sample in samples} == {"a good", "a bad"}
    Path("openings.txt").unlink()
    assert commands.load_models("run").environment.prompts == str(Path("run/prompts.txt"))
    arguments = json.loads(Path("run/arguments.json").read_text())
    assert arguments["prompts"] == str(tmp_path / "openings.txt")


def test_what_a_killed_run_left_is_not_the_next_runs(tmp_path):
    (tmp_path / "prompts.txt").write_text("of another run")
    (tmp_path / "start_texts.npz").write_bytes(b"of another run")
    run(tmp_path, "--updates", "1", "--kl-coef", "0")
    assert commands.load_models(str(tmp_path)).environment.prompts is None
    assert not (tmp_path / "start_texts.npz").exists()


@pytest.mark.parametrize("used", [True, False])
def test_a_users_own_file_of_prompts_in_the_runs_folder_stays(used, tmp_path):
    (tmp_path / "prompts.txt").write_text("a good\n")
    flags = ["--prompts", str(tmp_path / "prompts.txt")] if used else []
    assert run(tmp_path, "--updates", "1", *flags) == 0
    assert (tmp_path / "prompts.txt").read_text() == "a good\n"


def test_an_existing_run_is_not_overwritten(finished, capsys):
    with pytest.raises(SystemExit):
        run(finished)
    assert "add --resume, or choose another" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "nothing", "--resume")
    assert "holds no run with a checkpoint" in capsys.readouterr().err


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/reviews-seed0").mkdir(parents=True)
    assert training.parse_arguments([]).run.out == os.path.join("runs", "reviews-seed0-2")


def test_interrupt_saves_and_exits_cleanly(tmp_path):
    out = tmp_path / "run"
    command = [
        *(sys.executable, str(ROOT / "examples/train_reinforce.py"), *SMALL, "--kl-coef", "0"),
        *("--out", str(out), "--updates", "1000", "--save-every", "1000"),
    ]
    process = subprocess.Popen(
        [c for c in command if c != "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("update"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopping after this update" in output
    assert REINFORCE.load(out / "checkpoint.zip")._n_updates == len(rows(out)) > 0
    assert json.loads((out / "summary.json").read_text())["updates"] == len(rows(out))


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    train = REINFORCE.train

    def poisoned(self, episodes):
        if self._n_updates == 2:
            episodes.rewards[0] = float("nan")
        train(self, episodes)

    monkeypatch.setattr(REINFORCE, "train", poisoned)
    assert run(out, "--updates", "5", "--save-every", "1") == 1
    assert "update 3: the policy_gradient_loss is nan" in capsys.readouterr().err
    model = REINFORCE.load(out / "checkpoint.zip")
    assert model._n_updates == 2
    assert all(p.isfinite().all() for p in model.policy.parameters())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["updates"] == 2
    assert "the policy_gradient_loss is nan" in summary["error"]
    assert (out / "samples.md").exists()
    gpt2 = GPT2.from_pretrained(out / "gpt2")
    assert torch.equal(gpt2.wte.weight, model.policy.gpt2.wte.weight)


def test_weights_that_are_not_finite_are_not_measured(tmp_path, monkeypatch):
    """Before the first checkpoint there is only the start model to go back to."""

    def spoil(self, episodes):
        torch.nn.init.constant_(self.policy.gpt2.wte.weight, float("nan"))
        raise FloatingPointError("update 1: the weights are nan")

    monkeypatch.setattr(REINFORCE, "train", spoil)
    assert run(tmp_path / "run", "--updates", "2") == 1
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["updates"], summary["after"]["kl"]) == (0, 0)


def test_gpt2_preset_on_local_models(tmp_path):
    """The real thing's flags, with a tiny GPT-2 of the full vocabulary in place of the hub's."""
    from agents import GPT2Config

    torch.manual_seed(0)
    GPT2(GPT2Config(n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    out = tmp_path / "run"
    arguments = [
        "--preset",
        "gpt2",
        "--model",
        str(tmp_path / "gpt2"),
        "--sentiment-model",
        "vader",
    ]
    small = [
        "--num-envs",
        "8",
        "--updates",
        "2",
        "--eval-episodes",
        "8",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert training.main([*arguments, *small, "--out", str(out)]) == 0
    arguments = json.loads((out / "arguments.json").read_text())
    assert arguments["vocabulary"] == "gpt2"
    assert arguments["prompts"].endswith("review_openings.txt")
    assert arguments["kl_coef"] > 0


def test_openings_fit_gpt2_and_are_distinct():
    lines = (ROOT / "agents/data/review_openings.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) >= 90


def test_a_learning_rate_that_blows_up_ends_with_the_term_named(tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out, "--updates", "9", "--save-every", "1", "--learning-rate", "1e9") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    summary = json.loads((out / "summary.json").read_text())
    assert line == f"error: {summary['error']}"
    assert any(word in line for word in ("logits", "loss", "gradient", "weight"))
    assert (out / "samples.md").exists()
    assert all(p.isfinite().all() for p in GPT2.from_pretrained(out / "gpt2").parameters())
    # The first update's weights are finite, but no text can be drawn from them.
    assert (summary["updates"], summary["after"]["kl"]) == (0, 0)
    assert [p.name for p in out.glob("checkpoint*")] == ["checkpoint.damaged"]


# ------------------------------------------------------------------------------------------- resume


def test_a_resume_records_what_it_changes(tmp_path):
    out = tmp_path / "run"
    assert run(out, "--updates", "1") == 0
    resume = ["--out", str(out), "--resume"]
    assert training.main([*resume, "--updates", "2", "--keep", "1"]) == 0
    assert training.main([*resume, "--eval-episodes", "8"]) == 0
    changes = [
        {"update": 1, "argument": "updates", "from": 1, "to": 2},
        {"update": 1, "argument": "keep", "from": 2, "to": 1},
        {"update": 2, "argument": "eval_episodes", "from": 16, "to": 8},
    ]
    recorded = json.loads((out / "arguments.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    assert recorded["changes"] == summary["changes"] == changes
    for arguments in (recorded, summary["arguments"]):
        assert (arguments["updates"], arguments["keep"], arguments["eval_episodes"]) == (2, 1, 8)
    assert summary["before"]["episodes"] == 8
    assert [p.name for p in out.glob("*.zip")] == ["checkpoint.zip"]


def test_a_resume_that_would_alter_the_task_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    arguments = ["--out", str(finished), "--resume", "--learning-rate", "1e-9"]
    with pytest.raises(SystemExit, match="2"):
        training.main([*arguments, "--updates", "9"])
    rate = PRESETS["reviews"].reinforce.learning_rate
    refused = f"--learning-rate 1e-09: --resume cannot change it from {rate}"
    assert refused in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_goes_on_from_the_older_checkpoint_if_the_newest_is_damaged(tmp_path, finished, capsys):
    out = tmp_path / "run"
    assert run(out, "--updates", "4", "--save-every", "3") == 0
    newest = out / "checkpoint.zip"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"going on from checkpoint-1.zip, because"):
        assert training.main(["--out", str(out), "--resume", "--no-quiet"]) == 0
    assert "checkpoint-1.zip, update 3" in capsys.readouterr().out
    assert tensors(out) == tensors(finished)


def test_a_half_written_row_does_not_block_resuming(tmp_path):
    out = tmp_path / "run"
    assert run(out, "--updates", "2") == 0
    whole = (out / "progress.csv").read_bytes()
    (out / "progress.csv").write_bytes(whole + b"0.5,-0.25,0.1")
    assert training.main(["--out", str(out), "--resume", "--updates", "3"]) == 0
    assert [r["train/n_updates"] for r in rows(out)] == ["1", "2", "3"]
    assert (out / "progress.csv").read_bytes().startswith(whole)
    assert list(rows(out)[0]) == sorted(rows(out)[0])


@pytest.mark.parametrize("name", ["arguments.json", "progress.csv", "monitor.csv", "summary.json"])
def test_a_kill_while_a_file_is_replaced_leaves_the_old_one(name, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert run(out, "--updates", "2") == 0
    before = (out / name).read_bytes()
    replace = os.replace

    def killed(source, target):
        if Path(target).name == name:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    resume = ["--out", str(out), "--resume", "--updates", "3"]
    assert training.main(resume) == 130
    assert (out / name).read_bytes() == before
    monkeypatch.undo()
    assert training.main(resume) == 0
    assert len(rows(out)) == json.loads((out / "summary.json").read_text())["updates"] == 3
    assert not list(out.glob(".*"))


# ------------------------------------------------------------------------------------------ signals


def kill_self(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture
def signals_in_update(monkeypatch):
    """Sends signals in the middle of the third update."""

    def arrange(*names):
        train = REINFORCE.train

        def signalled(self, episodes):
            for name in names if self._n_updates == 2 else ():
                kill_self(name)
            train(self, episodes)

        monkeypatch.setattr(REINFORCE, "train", signalled)

    return arrange


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["SIGINT"], 130),
        (["SIGTERM"], 143),
        (["SIGHUP"], 129),
        (["SIGTERM", "SIGHUP", "SIGTERM"], 143),
    ],
)
def test_a_signal_saves_and_its_status_is_told(names, status, tmp_path, signals_in_update):
    signals_in_update(*names)
    out = tmp_path / "run"
    assert run(out, "--updates", "9", "--save-every", "9") == status
    assert REINFORCE.load(out / "checkpoint.zip")._n_updates == len(rows(out)) == 3
    assert json.loads((out / "summary.json").read_text())["updates"] == 3
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_interrupt_ends_at_once(tmp_path, signals_in_update, capsys):
    signals_in_update("SIGINT", "SIGINT")
    out = tmp_path / "run"
    assert run(out, "--updates", "9", "--save-every", "2", "--no-quiet") == 130
    printed = capsys.readouterr().out
    assert "stopping after this update; Ctrl-C again to stop at once" in printed
    assert "stopped; --resume goes on" in printed
    assert REINFORCE.load(out / "checkpoint.zip")._n_updates == 2
    assert not list(out.glob(".*"))
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize("when", [1, 2])
def test_a_signal_in_an_evaluation_loses_nothing(when, tmp_path, monkeypatch, capsys):
    evaluate, calls = training.evaluate, []

    def interrupted(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == when:
            kill_self("SIGTERM")
        return evaluate(*arguments, **keywords)

    monkeypatch.setattr(training, "evaluate", interrupted)
    out = tmp_path / "run"
    assert run(out, "--updates", "2") == 143
    printed = capsys.readouterr()
    assert printed.err == ""
    if when == 1:
        assert "stopped; nothing was saved yet" in printed.out
        assert run(out, "--updates", "2") == 0
    else:
        assert "stopped; --resume goes on" in printed.out
        assert REINFORCE.load(out / "checkpoint.zip")._n_updates == len(rows(out)) == 2
        assert GPT2.from_pretrained(out / "gpt2")
        assert training.main(["--out", str(out), "--resume"]) == 0
    assert json.loads((out / "summary.json").read_text())["updates"] == 2


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere", *DEFAULT_SIZE], "nowhere"),
        (["--sentiment-model", "./nowhere"], "nowhere"),
        (["--vocabulary", "large"], "large"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--group-size", "3"], "group_size=3"),
        (["--target-length", "9", "3"], "target_length"),
        (["--n-embd", "15"], "15"),
        (["--gamma", "2"], "gamma=2.0"),
        (["--kl-coef", "nan"], "kl_coef=nan"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "run", *arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list((tmp_path / "run").rglob("*"))


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    with RunFolder(tmp_path / "run").locked(), pytest.raises(SystemExit, match="2"):
        run(tmp_path / "run", "--updates", "1")
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


def test_fewer_updates_than_were_made_are_refused(tmp_path, capsys):
    out = str(tmp_path / "run")
    run(out, "--updates", "2")
    with pytest.raises(SystemExit):
        training.main(["--out", out, "--resume", "--updates", "1"])
    assert "--updates 1:" in capsys.readouterr().err


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again():
    """A tensor of 64 MB takes some 16,000 new pages from the kernel, unless freed ones were kept.

    Something small may come to lie in the space of the first one, which is then too small for the second:
    several are made before the pages are counted.
    """
    program = """
import resource
import torch
from agents.training import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(new_pages())
keep_freed_memory()
for _ in range(10):
    new_pages()
print(new_pages())
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    by_default, kept = map(int, output.stdout.split())
    assert kept * 10 < by_default
