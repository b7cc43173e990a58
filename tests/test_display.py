"""A run in the terminal and without one."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from agents.callbacks import UPDATES
from agents.display import RunDisplay, coloured, contributions, show_outcome, sparkline

LOG = {
    "rollout/ep_rew_mean": 0.5,
    "rollout/sentiment": 0.6,
    "rollout/vader": 0.25,
    "rollout/length": 11.0,
    "rollout/distinct_texts": 0.98,
    "train/kl": 1.25,
    "train/perplexity": 31.0,
    "time/fps": 1234.5,
}


def shown(updates, terminal=False, **console):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, height=40, **console)
    display = RunDisplay(console)
    with display.status("evaluating") as progress:
        progress(34, 256)
    with display.training(0, updates):
        for update in range(1, updates + 1):
            display.samples = [coloured(["a", " film"], lambda texts: [0.1] * len(texts))]
            display.write(LOG | {UPDATES: update, "rollout/ep_rew_mean": update / updates}, {})
    display.close()
    return file.getvalue()


def test_without_a_terminal_there_are_twenty_plain_lines():
    lines = shown(200).splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("update   10/200  reward +0.050  sentiment +0.600  VADER +0.25")
    assert "KL 1.25  perplexity 31  length 11.0  distinct 98%  1,234 tokens/s" in lines[0]
    assert lines[-1].endswith("0:00 left")
    assert "\x1b" not in "".join(lines)


def test_a_short_run_shows_every_update():
    assert [line[:11] for line in shown(3).splitlines()] == [f"update    {n}" for n in (1, 2, 3)]


def test_a_quiet_run_shows_nothing():
    assert shown(5, quiet=True) == ""


def test_a_terminal_shows_bar_measures_and_samples():
    out = shown(8, terminal=True)
    for text in ("evaluating", "8/8", "VADER, a second judge", "+0.250", "▁▂▃▄▅▆▇█", " film"):
        assert text in out, text


def test_tokens_are_coloured_by_their_contribution():
    scores = {" not": -0.5, " not bad": 0.4, " not bad.": 0.42}

    def judge(texts):
        return np.array([scores[text] for text in texts])

    text = coloured([" not", " bad", ".", ""], judge)
    assert text.plain == "▏ not bad."
    red, green = (span.style for span in text.spans)
    assert red == "rgb(177,80,80)"
    assert green == "rgb(80,239,80)"
    assert coloured([""], judge).plain == "▏"


@pytest.mark.parametrize("prompt", ["", "It is"])
def test_contributions_add_up_to_what_was_written(prompt):
    tokens = [" bad", "", " or", " good"]
    found = contributions(tokens, lambda texts: [len(text) / 100 for text in texts], prompt)
    np.testing.assert_allclose(found, [0.04, 0, 0.03, 0.05])
    assert len(contributions([], lambda texts: [0.0] * len(texts), prompt)) == 0


@pytest.mark.parametrize(
    ("values", "expected"), [(range(8), "▁▂▃▄▅▆▇█"), ([2, 2], "▁▁"), ([1, 0], "█▁")]
)
def test_sparklines(values, expected):
    assert sparkline(values) == expected
    assert len(sparkline(range(1000))) == 40


def outcome(folder, **summary):
    file = io.StringIO()
    measures = {"episodes": 2, "reward": 0.25, "vader": -0.5, "end_rate": 0.5, "kl": 1.5}
    summary = {
        "arguments": {"out": str(folder), "updates": 8, "tensorboard": False, "track": None},
        **{"updates": 8, "seconds": 61.2, "tokens_per_second": 1234.5},
        **{"before": measures | {"kl": 0.0}, "after": measures},
        **summary,
    }
    samples = [{"text": " [bold] film", "reward": 0.25}] * 2
    show_outcome(Console(file=file, width=100), summary, samples, samples)
    return file.getvalue()


def test_the_outcome_has_units_files_and_commands(tmp_path):
    (tmp_path / "samples.md").touch()
    (tmp_path / "checkpoint.zip").touch()
    out = outcome(tmp_path)
    for row in (
        r"reward +│ \+0.250 │ \+0.250 │ per text",
        r"VADER, a second judge +│ -0.500 ",
        r"KL to the start model +│ +0.00 │ +1.50 │ nats per text",
        r"by themselves +│ +50.0% │ +50.0% │ share",
    ):
        assert re.search(row, out), row
    assert "[bold] film" in out  # no markup
    assert "samples.md" in out
    assert "progress.csv" not in out
    assert f"train --out {tmp_path} --resume --updates 16" in out
    assert "tensorboard" not in out


def test_a_stopped_run_is_told_to_go_on_to_its_end(tmp_path):
    (tmp_path / "checkpoint.zip").touch()
    arguments = {"out": str(tmp_path), "updates": 8, "tensorboard": True, "track": "trackio"}
    out = outcome(tmp_path, updates=3, arguments=arguments)
    assert re.search(rf"train --out {tmp_path} --resume +#", out)
    assert f"tensorboard --logdir {tmp_path}" in out
    assert "trackio show --project text-sentiment-env" in out


def test_a_run_without_a_checkpoint_is_not_told_to_resume(tmp_path):
    out = outcome(tmp_path)
    assert f"generate {tmp_path}" in out
    assert "--resume" not in out
