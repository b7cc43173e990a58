"""`python -m agents`: what one does with a run afterwards."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from agents import GPT2, REINFORCE, GPT2Policy, SB3VecEnv
from agents.__main__ import main
from agents.arguments import parse_arguments
from agents.commands import Evaluate, Play, Watch, load_models
from agents.generation import generate_text, vocabulary_of
from agents.gpt2_config import GPT2Config
from agents.runs import RunFolder

SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "4", "--max-tokens", "5"),
    *("--eval-episodes", "8", "--start-episodes", "8"),
    *("--model", "random", "--sentiment-model", "vader", "--quiet"),
    *("--vocabulary", "small", "--updates", "2"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        assert main(["train", *SMALL, "--out", str(folder / seed), "--seed", seed]) == 0
    return folder


def test_a_run_ends_with_commands_that_can_be_pasted(runs, tmp_path, capsys):
    out = tmp_path / "my run"
    assert main(["train", *SMALL, "--no-quiet", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    _, _, there = printed.partition("Everything is in ")
    there, _, to_do = there.partition("What to do next:\n")
    listed = {line.split()[0] for line in there.splitlines()[1:] if line}
    assert {"samples.md", "progress.csv", "monitor.csv", "gpt2", "checkpoint.zip"} <= listed
    assert all((out / name).exists() for name in listed)
    commands = [shlex.split(line, comments=True) for line in to_do.splitlines()]
    names = [command[3] for command in commands]
    assert names == ["generate", "evaluate", "play", "train"]
    assert main(commands[0][3:]) == 0
    texts = lines(capsys)
    assert len(texts) == 5
    assert all(text.startswith("the movie") for text in texts)
    args = parse_arguments(commands[-1][4:])
    assert (args.run.out, args.run.resume, args.run.updates) == (str(out), True, 4)


def lines(capsys):
    return capsys.readouterr().out.strip().splitlines()


@pytest.mark.parametrize("kind", ["0", "0/checkpoint.zip", "0/gpt2"])
def test_generate_writes_texts_of_the_trained_model(runs, kind, capsys):
    run = str(runs / kind)
    assert main(["generate", run, "the movie", "-n", "3", "--seed", "7"]) == 0
    texts = lines(capsys)
    assert len(texts) == 3
    assert all(text.startswith("the movie") for text in texts)
    trained = GPT2.from_pretrained(runs / "0" / "gpt2")
    expected = generate_text(trained, "the movie", 3, seed=7, max_tokens=20)
    assert texts == [text.strip() for text in expected]


def test_generated_texts_are_those_of_the_policy(runs):
    model = REINFORCE.load(runs / "0")
    texts = model.generate_text("the movie is", n=4, seed=3, max_tokens=2)
    assert texts == generate_text(model.policy.gpt2, "the movie is", 4, seed=3, max_tokens=2)
    assert all(text.startswith(" the movie is") for text in texts)
    assert model.generate_text(greedy=True) == model.generate_text(greedy=True)
    with pytest.raises(ValueError, match="outside this vocabulary"):
        model.generate_text("screenplay")
    with pytest.raises(ValueError, match=r"prompt has 9 tokens, the model reads 5"):
        model.generate_text("the movie is good the movie is good.")
    with pytest.raises(ValueError, match="n=0 and max_tokens=20 must be at least 1"):
        model.generate_text(n=0)


def test_a_run_that_failed_before_its_first_checkpoint_has_its_start_model(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "0", run)
    for checkpoint in run.glob("checkpoint*.zip"):
        checkpoint.unlink()
    assert main(["generate", str(run), "the movie", "-n", "2"]) == 0
    assert len(lines(capsys)) == 2
    loaded = load_models(str(run))
    assert loaded.reference is loaded.gpt2
    assert (loaded.environment.max_tokens, loaded.environment.sentiment_model) == (5, "vader")
    shutil.rmtree(run / "gpt2")
    with pytest.raises(ValueError, match="holds no model: its run has saved none yet"):
        load_models(str(run))


def test_a_checkpoint_needs_no_newest_one_beside_it(runs, tmp_path):
    (tmp_path / "best.zip").write_bytes((runs / "0" / "checkpoint.zip").read_bytes())
    model = load_models(str(tmp_path / "best.zip"))
    assert model.environment.max_tokens == 5  # of the model's observations
    assert model.environment.sentiment_model == "bundled"
    (tmp_path / "arguments.json").write_bytes((runs / "0" / "arguments.json").read_bytes())
    assert load_models(str(tmp_path / "best.zip")).environment.sentiment_model == "vader"


def test_a_model_whose_texts_have_no_end_is_refused():
    gpt2 = GPT2.from_pretrained("reviews").restrict([50256, 3, 5])
    with pytest.raises(ValueError, match="do not end with"):
        vocabulary_of(gpt2)


def test_a_fine_tunes_further_tokens_are_left_out(tmp_path, capsys):
    config = GPT2Config(50258, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    gpt2 = GPT2(config)
    gpt2.save_pretrained(tmp_path)
    main(["generate", str(tmp_path), "good", "-n", "2", "--max-tokens", "3", "--seed", "0"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(ValueError, match=r"50,258 rows.* by gpt2\.restrict\(range\(50257\)\)"):
        generate_text(gpt2)


def test_seeds_of_texts():
    gpt2 = GPT2.from_pretrained("reviews")
    assert generate_text(gpt2, seed=np.int64(1)) == generate_text(gpt2, seed=1)
    for bad in (-1, 2**64, 1.5):
        with pytest.raises(ValueError, match=f"^seed={bad} "):
            generate_text(gpt2, seed=bad)


# ------------------------------------------------------------------------- stable-baselines3's files


@pytest.fixture(scope="module")
def ppo(tmp_path_factory):
    """A file of PPO with a GPT-2 of the small vocabulary."""
    envs = gym.make_vec("text_sentiment_env:TextSentiment-v0", num_envs=2, max_tokens=6)
    ids = envs.unwrapped.vocabulary.token_ids.tolist()
    config = {"n_embd": 8, "n_head": 1, "n_layer": 1, "vocab_size": len(ids), "token_ids": ids}
    kwargs = {"config": config | {"n_positions": 7}}
    model = PPO(GPT2Policy, SB3VecEnv(envs), n_steps=4, batch_size=8, policy_kwargs=kwargs)
    model.policy.gpt2.wte.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    file = tmp_path_factory.mktemp("sb3") / "ppo.zip"
    model.save(file)
    return model, file


def test_a_trusted_file_of_sb3_is_generated_from_and_evaluated(ppo, capsys):
    model, file = ppo
    arguments = ["the movie", "-n", "2", "--seed", "3", "--trust"]
    assert main(["generate", str(file), *arguments]) == 0
    expected = generate_text(model.policy.gpt2, "the movie", 2, seed=3)
    assert lines(capsys) == [text.strip() for text in expected]
    assert main(["evaluate", str(file), "--episodes", "8", "--trust"]) == 0
    assert "8 texts of" in capsys.readouterr().out
    assert load_models(str(file), trust=True).environment.max_tokens == 6


@pytest.mark.parametrize("command", ["generate", "evaluate", "play"])
def test_a_file_of_sb3_runs_nothing_unless_trusted(command, ppo, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    model, _ = ppo
    model.evil = Evil()
    model.save(tmp_path / "evil.zip")
    del model.evil
    with pytest.raises(SystemExit, match="2"):
        main([command, str(tmp_path / "evil.zip")])
    assert "can run any code when they are loaded. Add --trust" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    load_models(str(tmp_path / "evil.zip"), trust=True)
    assert (tmp_path / "ran").exists()  # what the flag is about


def test_a_file_of_another_policy_is_refused(tmp_path, capsys):
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).save(tmp_path / "ppo.zip")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(tmp_path / "ppo.zip"), "--trust"])
    assert "which is no GPT2Policy" in capsys.readouterr().err


def test_a_file_of_sb3_that_does_not_say_its_tokens_is_refused(tmp_path, capsys):
    envs = gym.make_vec("text_sentiment_env:TextSentiment-v0", num_envs=2, max_tokens=6)
    kwargs = {"config": {"n_embd": 8, "n_head": 1, "n_layer": 1}}
    model = PPO(GPT2Policy, SB3VecEnv(envs), n_steps=4, batch_size=8, policy_kwargs=kwargs)
    model.save(tmp_path / "ppo.zip")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(tmp_path / "ppo.zip"), "--trust"])
    assert 'policy_kwargs["config"]["token_ids"]' in capsys.readouterr().err


def test_watch_reads_the_log_of_sb3(tmp_path, capsys):
    logger = configure(str(tmp_path), ["csv"])
    for update in (10, 20):
        logger.record("rollout/ep_rew_mean", update / 80)
        logger.record("train/n_updates", update)
        logger.dump(update)
    logger.close()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "update 20" in out
    assert "0.250" in out


# ---------------------------------------------------------------------------------- the other commands


def test_evaluate_says_what_the_run_said(runs, capsys, tmp_path):
    """The same texts as in the run's own evaluation, by the same seed."""
    file = tmp_path / "measures.json"
    arguments = ["--episodes", "64", "--show", "2", "--json", str(file)]
    assert main(["evaluate", str(runs / "0"), *arguments]) == 0
    out = capsys.readouterr().out
    measures = json.loads(file.read_text())
    assert f"{measures['reward']:.3f}" in out
    assert len(measures["samples"]) == 64
    best = max(sample["reward"] for sample in measures["samples"])
    assert f"{best:+.2f}" in out
    assert re.search(r"sentiment, the judge.s score\s*│.*±", out), "an interval"
    _, reference, arguments, *_ = load_models(str(runs / "0"))
    assert arguments.max_tokens == 5
    assert arguments.sentiment_model == "vader"
    assert not torch.equal(reference.wte.weight, load_models(str(runs / "0"))[0].wte.weight)


def test_compare_shows_runs_and_their_mean(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    figure = tmp_path / "a.png"
    folders = [str(runs / "0"), str(runs / "1")]
    assert main(["compare", *folders, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    after = [json.loads((runs / n / "summary.json").read_text())["after"] for n in "01"]
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    for name, measures in zip("01", after, strict=True):
        assert f"{measures['sentiment']:.3f}" in lines[name]
    assert f"{(after[0]['sentiment'] + after[1]['sentiment']) / 2:.3f}" in lines["mean"]
    assert f"{abs(after[0]['sentiment'] - after[1]['sentiment']) / 2:.3f}" in lines["±"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_compare_fits_80_columns_and_cuts_no_name(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    folders = []
    for n in "01":
        folders.append(tmp_path / f"reviews-seed{n}-of-a-long-name")
        shutil.copytree(runs / n, folders[-1])
    figure = tmp_path / "a.png"
    assert main(["compare", *map(str, folders), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_compare_takes_no_mean_over_tasks(runs, capsys, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "1", other)
    summary = json.loads((other / "summary.json").read_text())
    summary["arguments"]["length_penalty"] += 1
    (other / "summary.json").write_text(json.dumps(summary))
    figure = tmp_path / "a.png"
    assert main(["compare", str(runs / "0"), str(other), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "no mean, because the runs differ in --length-penalty" in out
    assert "±" not in out


def test_evaluate_names_the_task_and_says_when_the_start_model_is_unknown(runs, capsys):
    few = ["--episodes", "4", "--show", "1"]
    assert main(["evaluate", str(runs / "0"), *few]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "judge vader, positive texts, prompts" in out
    assert "no start model is known" not in out
    assert main(["evaluate", "reviews", *few]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "judge bundled, positive texts, prompts none, at most 20 tokens" in out
    assert "no start model is known: KL and perplexity are to the model itself" in out


@pytest.mark.parametrize("name", ["s[kl=0.1]", "a:dog:b"])
def test_names_are_shown_as_they_are(name, runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shutil.copytree(runs / "0", tmp_path / name)
    (tmp_path / name / "prompts[0].txt").write_text("the movie")
    assert main(["watch", str(tmp_path / name), "--once"]) == 0
    assert name in capsys.readouterr().out
    prompts = str(tmp_path / name / "prompts[0].txt")
    flags = ["--episodes", "4", "--prompts", prompts, "--max-tokens", "3"]
    assert main(["evaluate", str(tmp_path / name), *flags]) == 0
    out = "".join(capsys.readouterr().out.split())  # the table is narrow
    assert f"4textsof{tmp_path / name}" in out
    assert f"prompts{prompts}" in out


def test_evaluate_says_that_a_file_records_no_environment(runs, capsys, tmp_path):
    shutil.copy(runs / "0" / "checkpoint.zip", tmp_path / "alone.zip")
    told = "the model records no environment: what no flag sets is the default"
    for run, expected in ((tmp_path / "alone.zip", True), (runs / "0", False)):
        assert main(["evaluate", str(run), "--episodes", "4", "--show", "0"]) == 0
        assert (told in " ".join(capsys.readouterr().out.split())) == expected
    Play(str(tmp_path / "alone.zip"))(lambda prompt: "")
    assert told in capsys.readouterr().out


def test_evaluate_measures_held_out_prompts(runs, capsys, tmp_path):
    """The flags replace the recorded task, whose frontier then says nothing."""
    held_out, file = tmp_path / "held_out.txt", tmp_path / "x.json"
    held_out.write_text("the movie\nthis film\n")
    few = ["--episodes", "64", "--show", "0", "--json", str(file)]
    assert main(["evaluate", str(runs / "0"), *few]) == 0
    recorded = json.loads(file.read_text())
    assert "win_rate" in recorded
    other = ["--prompts", str(held_out), "--max-tokens", "3"]  # the model has room for 5
    assert main(["evaluate", str(runs / "0"), *few, *other]) == 0
    result = json.loads(file.read_text())
    assert not result.keys() & {"win_rate", "gap"}
    prompts = {sample["prompt"].strip() for sample in result["samples"]}
    assert prompts == {"the movie", "this film"}
    other = ["--target", "negative", "--sentiment-model", "bundled", "--max-tokens", "3"]
    assert main(["evaluate", str(runs / "0"), *few, *other]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "judge bundled, negative texts, prompts none, at most 3 tokens" in out
    result = json.loads(file.read_text())
    assert "win_rate" not in result
    assert result["length"] <= 3
    sample = result["samples"][0]
    assert sample["reward"] == pytest.approx(-sample["sentiment"] - sample["length_penalty"])


def test_evaluate_reads_no_texts_of_the_start_model_for_a_run_without_kl(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "0", run)
    assert load_models(str(run)).frontier is not None
    arguments = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps(arguments | {"kl_coef": 0.0}))
    assert load_models(str(run)).frontier is None


def test_a_run_without_checkpoints_is_compared_with_the_start_model_that_it_records(
    runs, capsys, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(runs / "0", run)
    start = GPT2.from_pretrained("reviews")
    ids = GPT2.from_pretrained(run / "gpt2").token_ids
    for checkpoint in run.glob("checkpoint*.zip"):
        checkpoint.unlink()
    arguments = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps(arguments | {"model": "reviews"}))
    loaded = load_models(str(run))
    assert torch.equal(loaded.reference.wte.weight, start.restrict(ids).wte.weight)
    assert loaded.frontier is not None
    assert main(["evaluate", str(run), "--episodes", "4", "--show", "0"]) == 0
    assert "no start model is known" not in " ".join(capsys.readouterr().out.split())
    (run / "arguments.json").write_text(json.dumps(arguments | {"model": str(tmp_path / "gone")}))
    loaded = load_models(str(run))
    assert loaded.reference is loaded.gpt2
    assert loaded.frontier is None


def test_evaluate_shows_no_texts_if_asked_for_none(runs, capsys):
    assert main(["evaluate", str(runs / "0"), "--episodes", "4", "--show", "0"]) == 0
    out = capsys.readouterr().out
    assert "best" not in out
    assert "worst" not in out


def test_evaluate_shows_what_the_task_adds(runs, capsys, monkeypatch):
    measure = Evaluate.measure

    def with_a_term(self, loaded):
        result = measure(self, loaded)
        for i, sample in enumerate(result["samples"]):
            sample["spelling"] = float(i % 2)
        return result | {"spelling": 0.5}

    monkeypatch.setattr(Evaluate, "measure", with_a_term)
    assert main(["evaluate", str(runs / "0"), "--episodes", "4", "--show", "0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"│ spelling +│ +\+0.500 │ +± 0.566 │", out)
    assert "standard" not in out


@pytest.mark.parametrize("name", ["runs/nowhere", "I think"])
def test_a_run_that_does_not_exist(name, capsys):
    with pytest.raises(SystemExit):
        main(["generate", name])
    assert f"there is no run or checkpoint '{name}'" in capsys.readouterr().err


def test_a_file_that_is_no_run(runs, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(runs / "0" / "progress.csv")])
    assert "is no run, checkpoint (.zip) or model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "evaluate", "play"])
def test_a_directory_with_a_zip_files_name(command, capsys, tmp_path):
    (tmp_path / "x.zip").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main([command, str(tmp_path / "x.zip")])
    assert "x.zip holds no config.json" in capsys.readouterr().err


def test_generate_writes_each_text_in_one_line(runs, capsys, monkeypatch):
    texts = [" a\n b", "c\r\u2028d", "\x0ce  f"]
    monkeypatch.setattr("agents.commands.generate_text", lambda *_, **__: texts)
    assert main(["generate", str(runs / "0")]) == 0
    assert capsys.readouterr().out.splitlines() == ["a b", "c d", "e f"]


def test_a_checkpoint_without_its_suffix(runs, capsys, tmp_path):
    shutil.copy(runs / "0" / "checkpoint.zip", tmp_path / "policy.zip")
    assert main(["generate", str(tmp_path / "policy"), "-n", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_watch_waits_while_a_run_holds_its_folder(tmp_path):
    watch, folder = Watch(tmp_path), RunFolder(tmp_path)
    assert watch._under_way()  # a log of SB3's has no lock
    with folder.locked():
        folder.record({}, None)
        assert watch._under_way()
        (tmp_path / "summary.json").write_text("{}")
        assert watch._under_way()  # its pictures are missing yet
    assert not watch._under_way()
    (tmp_path / ".lock").touch()  # of a run that was killed
    assert not watch._under_way()


def test_watch_ends_with_a_run_that_was_killed_and_says_so(runs, tmp_path, capsys):
    run = tmp_path / "a run"
    shutil.copytree(runs / "0", run)
    (run / ".lock").touch()
    assert main(["watch", str(run)]) == 0
    assert "has stopped" not in capsys.readouterr().out
    os.utime(run / "arguments.json")  # it has gone on since its summary
    assert main(["watch", str(run)]) == 0
    out = capsys.readouterr().out
    assert "the run has stopped without a summary;" in out
    assert f"`python -m agents train --out '{run}' --resume` goes on" in out
    for checkpoint in run.glob("checkpoint*.zip"):
        checkpoint.unlink()
    (run / "summary.json").unlink()
    assert main(["watch", str(run), "--once"]) == 0
    assert "it has saved no checkpoint to go on from" in capsys.readouterr().out


def test_watch_shows_where_a_run_stands(runs, capsys):
    for once in ([], ["--once"]):
        assert main(["watch", str(runs / "0"), *once]) == 0
        out = capsys.readouterr().out
        assert "update 2" in out
        assert "reward" in out
        assert out.endswith("\n")


def test_report_draws_the_page_again(runs, capsys):
    page = runs / "1" / "report.html"
    drawn = page.read_bytes()
    page.unlink()
    assert main(["report", str(runs / "1")]) == 0
    assert lines(capsys) == [str(page)]
    assert len(page.read_bytes()) == len(drawn)


def test_a_text_is_written_by_hand(runs, capsys):
    answers = iter(["the movie", "zebra", "1", ""])
    Play(str(runs / "0"), choices=3)(lambda prompt: next(answers))
    out = capsys.readouterr().out
    assert "outside this vocabulary" in out  # of zebra, and the game goes on
    assert re.search(r"the movie .*\nreward [+-]\d\.\d+", out)
    assert "length 3.000" in out


def test_the_end_of_the_input_ends_the_text(runs, capsys):
    answers = iter(["the movie"])

    def ask(prompt):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    Play(str(runs / "0"))(ask)
    assert re.search(r"the movie\nreward [+-]\d\.\d+", capsys.readouterr().out)


def test_files_are_written_to_new_folders(runs, tmp_path):
    run, file, figure = str(runs / "0"), tmp_path / "a" / "b" / "x.json", tmp_path / "c" / "x.png"
    assert main(["evaluate", run, "--episodes", "8", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["run"] == run
    assert main(["compare", run, "--figure", str(figure)]) == 0
    assert figure.is_file()


def test_files_that_cannot_be_written_are_refused_before_the_work(
    runs, tmp_path, monkeypatch, capsys
):
    def work(*_):
        raise AssertionError

    monkeypatch.setattr("agents.commands.Evaluate.measure", work)
    monkeypatch.setattr("agents.figures.compare_runs", work)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path):
        for command, flag in (("evaluate", "--json"), ("compare", "--figure")):
            with pytest.raises(SystemExit, match="2"):
                main([command, str(runs / "0"), flag, str(path)])
            assert capsys.readouterr().err.startswith(f"error: {flag} {path}: ")


def test_a_failing_write_names_its_flag(runs, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agents.figures.write_sheet", full)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(runs / "0"), "--figure", str(tmp_path / "x.png")])
    assert "error: --figure" in capsys.readouterr().err


def test_a_damaged_summary_is_named(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{\n")
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'summary.json'} is damaged")
    assert "--resume" in error


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    _, _, listed = capsys.readouterr().out.partition("subcommands")
    for command in ("train", "generate", "evaluate", "compare", "play", "watch", "report", "info"):
        assert re.search(rf"^\W+{command}\b", listed, re.MULTILINE), command


def test_info_is_what_a_bug_report_needs(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("text-sentiment-env", "Python", "gymnasium", "torch", "CUDA", "TextSentiment-v0"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "./nothing"], "error: there is no run or checkpoint './nothing'"),
        (["generate", "reviews", "-n", "0"], "error: n=0 and max_tokens=20 must be at least 1"),
        (["generate", "reviews", "--seed", "99999999999999999999"], "error: --seed 9999999999"),
        (["play", "--choices", "-1"], "error: --choices -1: must be at least 0"),
        (["evaluate", "reviews", "--max-tokens", "0"], "error: --max-tokens 0: must be at least 1"),
        (["evaluate", "reviews", "--prompts", "nothing"], "error: prompts='nothing' is not a file"),
        (["evaluate", "reviews", "--episodes", "0"], "error: --episodes 0: must be at least 1"),
        (["evaluate", "reviews", "--show", "-1"], "error: --show -1: must be at least 0"),
        (["evaluate", "reviews", "--seed", "-1"], "error: --seed -1: must lie in [0, 2**32)"),
        (["compare", "nothing"], "error: nothing holds no summary.json"),
        (["report", "nothing"], "error: nothing holds no summary.json"),
        (["watch", "nothing"], "error: nothing is no folder of a run"),
        (["sing"], "error: "),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(message)
    assert "\n" not in error
