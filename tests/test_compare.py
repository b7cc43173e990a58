"""`python -m agents compare`: which runs a mean is taken over, what the figure shows, --json."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from agents import figures
from agents.__main__ import main
from agents.arguments import PRESETS


def record(folder, name, rewards=(0.1, 0.2), **arguments):
    """A finished run's folder, as far as `compare` reads it."""
    run = folder / name
    run.mkdir(parents=True)
    after = {"reward": rewards[-1], "sentiment": 0.5, "length_penalty": 0.25}
    summary = {
        "arguments": {**PRESETS["small"].flat(), "out": str(run), **arguments},
        "updates": len(rewards),
        "before": after,
        "after": after,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [f"{i},{reward}" for i, reward in enumerate(rewards, 1)]
    log = "\n".join(["train/n_updates,rollout/ep_rew_mean", *rows, ""])
    (run / "progress.csv").write_text(log)
    return str(run)


@pytest.fixture
def compare(tmp_path, capsys, monkeypatch):
    """Runs the command, in 80 columns; returns what it printed, without what wraps a name."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        assert main(["compare", "--figure", str(tmp_path / "x.png"), *arguments]) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines()[:-1])) <= 80
        return out

    return run


def axes(groups):
    """The drawn panels by title."""
    found = {}
    for panel in figures.compare_runs(groups):
        found[panel.title] = Figure().add_subplot()
        panel.draw(found[panel.title])
    return found


def test_means_are_over_runs_that_differ_only_in_what_changes_no_result(compare, tmp_path):
    runs = [
        *(record(tmp_path, f"a{i}", (0, r), kl_coef=0.1, seed=i) for i, r in enumerate((1, 2))),
        *(record(tmp_path, f"b{i}", (0, r), kl_coef=0.3, seed=i) for i, r in enumerate((5, 7))),
        record(tmp_path, "c", (0, 9), kl_coef=0.5),
    ]
    same = {"device": "cuda", "save_every": 1, "micro_batch_size": 2, "cuda_graphs": False}
    runs.append(record(tmp_path, "a3", (0, 6), kl_coef=0.1, preset="reviews", seed=3, **same))
    out = compare(*runs)
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    means = [row[1] for row in rows if row[0].startswith("mean")]
    assert means == ["3.000", "6.000"]
    errors = [row[1] for row in rows if row[0] == "± error"]
    assert errors == [f"{np.std((1, 2, 6), ddof=1) / 3**0.5:.3f}", "1.000"]
    assert out.count("mean, kl_coef") == 2


def test_a_run_that_was_stopped_is_no_part_of_the_mean(compare, tmp_path):
    runs = [record(tmp_path, "whole", (0, 1, 2)), record(tmp_path, "stopped", (0, 1))]
    assert "no mean, because the runs differ in --updates" in compare(*runs)


def test_a_flag_that_an_older_run_did_not_record_had_its_default(compare, tmp_path):
    runs = [record(tmp_path, name) for name in "ab"]
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    del summary["arguments"]["adam_eps"]
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    assert "mean" in compare(*runs)


def test_groups_that_differ_in_much_are_named_by_a_run(compare, tmp_path):
    other = {"kl_coef": 9, "learning_rate": 9, "gamma": 0.5, "ent_coef": 9}
    runs = [record(tmp_path, name) for name in "ab"]
    runs += [record(tmp_path, name, **other) for name in "cd"]
    assert "mean, 2 runs like c" in " ".join(compare(*runs).split()).replace(" like", " like")


def test_the_same_run_counts_once(compare, tmp_path, monkeypatch):
    run = record(tmp_path, "a")
    monkeypatch.chdir(tmp_path)
    out = compare("a", "./a", run)
    assert "mean" not in out
    assert len(re.findall(r"0\.200", out)) == 1


def test_names_with_brackets_and_colons_are_shown(compare, tmp_path):
    names = ["s[kl=0.1]", "x[bold]", "a:dog:b"]
    out = compare(*(record(tmp_path, name) for name in names))
    assert all(name in out for name in names)


def test_json_is_a_table_for_pandas(compare, tmp_path):
    runs = [record(tmp_path, f"{k}{s}", kl_coef=k, seed=s) for k in (0.1, 0.2) for s in (0, 1)]
    file = tmp_path / "new" / "x.json"
    compare(*runs, "--json", str(file))
    content = json.loads(file.read_text())
    table = pd.json_normalize(content["runs"])
    assert table["run"].tolist() == runs
    assert table["arguments.kl_coef"].tolist() == [0.1, 0.1, 0.2, 0.2]
    assert table["arguments.seed"].tolist() == [0, 1, 0, 1]
    assert "arguments.gamma" not in table
    assert table["measures.length_penalty"].tolist() == [0.25] * 4
    groups = pd.json_normalize(content["groups"])
    assert groups["group"].tolist() == ["kl_coef 0.1, 2 runs", "kl_coef 0.2, 2 runs"]
    assert groups["mean.reward"].tolist() == [0.2, 0.2]
    assert groups["error.reward"].tolist() == [0, 0]
    assert set(table["group"]) == set(groups["group"])


# ----------------------------------------------------------------------------------------- figure


def test_a_group_has_one_colour_and_a_bold_mean_in_a_band(tmp_path):
    logs = {
        name: tmp_path / name / "progress.csv"
        for name in ("a0", "a1", "b")
        if record(tmp_path, name, {"a0": (0, 1, 2), "a1": (2, 3), "b": (5, 6)}[name])
    }
    axis = axes([("a", [logs["a0"], logs["a1"]]), ("b", [logs["b"]])])["reward (per text)"]
    *thin, mean, alone = axis.lines
    assert len({line.get_color() for line in (*thin, mean)}) == 1
    assert alone.get_color() != mean.get_color()
    assert max(line.get_linewidth() for line in thin) < mean.get_linewidth()
    np.testing.assert_allclose(mean.get_xydata(), [(1, 1), (2, 2)])  # updates that both have
    (band,) = axis.collections
    low, high = band.get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == (0, 3)
    assert all(tick == int(tick) for tick in axis.get_xticks())


def test_no_name_is_lost_from_the_legend(tmp_path):
    names = ["_hidden", "$x_1$", "a" * 120, *map(str, range(22))]
    for name in names:
        record(tmp_path, name)
    groups = [(name, [tmp_path / name / "progress.csv"]) for name in names]
    legend = axes(groups)[""].get_legend()
    assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == names
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == len(names)
    figures.write_sheet(figures.compare_runs(groups), tmp_path / "x.png")
    picture = imread(tmp_path / "x.png")[..., :3].min(-1)
    edges = np.concatenate([picture[-3:].ravel(), picture[:, -3:].ravel()])
    assert edges.min() == 1, "nothing is cut at the lower right"


@pytest.mark.parametrize(
    ("name", "start"), [("x.pdf", b"%PDF"), ("x.svg", b"<?xml"), ("x.PNG", b"\x89PNG")]
)
def test_the_suffix_is_the_format(name, start, compare, tmp_path):
    compare(record(tmp_path, "a"), "--figure", str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["x.xyz", "x"])
def test_an_unknown_format_is_refused_before_the_work(name, tmp_path, monkeypatch, capsys):
    def work(*_):
        raise AssertionError

    monkeypatch.setattr(figures, "compare_runs", work)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", record(tmp_path, "a"), "--figure", str(tmp_path / name)])
    captured = capsys.readouterr()
    assert f"error: --figure {tmp_path / name}: must end with .png" in captured.err
    assert not captured.out


# ----------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("content", ["{}", "[]", '{"arguments": 1, "before": 2, "after": 3}'])
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_summary_that_is_none_is_named(command, content, tmp_path, capsys):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main([command, str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'summary.json'} is damaged (it holds no summary")
