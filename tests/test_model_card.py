"""The README.md beside an exported model: valid metadata, the run's figures, nothing private."""

import json
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard

from agents import GPT2, model_card, page, training

SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "8", "--max-tokens", "6"),
    *(
        "--eval-episodes",
        "16",
        "--start-episodes",
        "16",
        "--model",
        "random",
        "--vocabulary",
        "small",
        "--quiet",
    ),
    *("--sentiment-model", "vader", "--updates", "2"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write", lambda *_: None)
        assert training.main([*SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def summary(run):
    return json.loads((run / "summary.json").read_text("utf-8"))


def card_of(folder, summary, **arguments):
    """The card of a run with other arguments."""
    summary["arguments"] |= arguments
    model_card.write(folder, summary)
    return ModelCard.load(folder / "README.md")


def test_the_metadata_is_what_the_hub_reads(run, summary):
    text = (run / "gpt2" / "README.md").read_text("utf-8")
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
    assert front["pipeline_tag"] == "text-generation"
    card = ModelCard.load(run / "gpt2" / "README.md")
    data = card.data
    assert (data.license, data.language, data.library_name) == ("mit", "en", "transformers")
    assert {"reinforcement-learning", "reinforce", "text-sentiment-env"} <= set(data.tags)
    assert data.base_model is None
    assert data.model_name == "tiny"
    [result] = data.eval_results
    assert result.dataset_name == "TextSentiment-v0"
    assert result.metric_value == pytest.approx(summary["after"]["reward"], abs=1e-4)


def test_the_card_tells_figures_command_and_use(run, summary):
    text = ModelCard.load(run / "gpt2" / "README.md").content
    for when in ("before", "after"):
        assert f"| {summary[when]['reward']:+.3f} |" in text.replace("| reward |", "|")
    assert "python -m agents train --preset=reviews --seed=0" in text
    assert "--model=random" in text
    assert 'pipeline("text-generation", model="YOU/tiny")' in text
    assert "trained from random weights" in text
    assert "Large Movie Review" not in text
    assert "{{" not in text
    assert "\n\n\n" not in text


def test_the_folder_with_its_card_loads_as_a_pipeline(run):
    from transformers import pipeline

    write = pipeline("text-generation", model=str(run / "gpt2"))
    [result] = write("the movie", max_new_tokens=3)
    assert result["generated_text"].startswith("the movie")
    assert GPT2.from_pretrained(run / "gpt2").config.n_layer == 1


def test_the_bundled_start_model_brings_its_terms(summary, tmp_path):
    card = card_of(tmp_path, summary, model="reviews")
    assert "Large Movie Review Dataset" in card.content
    assert (card.data.license, card.data.base_model) == ("mit", None)


@pytest.mark.parametrize(
    ("model", "license"), [("gpt2", "mit"), ("distilgpt2", "apache-2.0"), ("a/b", "unknown")]
)
def test_a_model_of_the_hub_is_the_base_model(model, license, summary, tmp_path):
    card = card_of(tmp_path, summary, model=model, sentiment_model="owner/judge")
    assert (card.data.base_model, card.data.license) == (model, license)
    assert f"The GPT-2 `{model}`, trained further" in card.content
    assert "`owner/judge`" in card.content
    assert ("Its license is that of its start model" in card.content) == (license == "unknown")


def test_paths_of_this_machine_are_not_told(summary, tmp_path):
    values = {"model": str(tmp_path), "sentiment_model": str(tmp_path), "prompts": str(tmp_path)}
    card = card_of(tmp_path, summary, **values)
    assert (card.data.base_model, card.data.license) == (None, "unknown")
    assert str(tmp_path) not in str(card)


@pytest.mark.parametrize("name", ["it's me", "plain"])
def test_a_path_with_a_quote_is_not_told(name, summary, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    card = card_of(tmp_path, summary, model=str(folder), prompts=str(folder))
    assert str(tmp_path) not in str(card)
    [line] = [line for line in card.content.splitlines() if line.startswith("python -m agents")]
    words = shlex.split(line)
    assert {f"--model={name}", f"--prompts={name}"} <= {*words}


def test_the_folder_itself_as_a_model_leaves_numbers_alone(summary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = card_of(tmp_path, summary, model=".", kl_coef=0.0, gamma=0.5)
    assert "--kl-coef=0.0" in card.content
    assert "--gamma=0.5" in card.content
    assert f"--model={tmp_path.name}" in card.content


def test_a_run_that_ended_in_an_error_says_so(summary, tmp_path):
    assert "ended in an error" not in card_of(tmp_path, summary).content
    card = card_of(tmp_path, summary | {"error": "update 3: the loss is nan"})
    assert "Training ended in an error: update 3: the loss is nan." in card.content
