"""The model card of a trained model: README.md in the folder that goes to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from agents.arguments import OURS, PATHS, is_local, training_command
from agents.atomic import atomic_write
from agents.report import measure_rows

# Of the start models whose terms are known; those of another are for its user to look up.
LICENSES = {
    **dict.fromkeys(("reviews", "random", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), "mit"),
    "distilgpt2": "apache-2.0",
}
REVIEWS_TERMS = (
    "The start model, `reviews`, learned from the Large Movie Review Dataset v1.0 (Maas et al. 2011,"
    " *Learning Word Vectors for Sentiment Analysis*, ACL). The data set names no license and asks to"
    " be cited; its texts belong to IMDb's users, and none is in these files. The opinions are biased"
    " as theirs are, and sometimes rude."
)


def write(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes README.md into a folder that `save_pretrained` wrote.

    Args:
        folder: of the model.
        summary: of the run, as in summary.json.
    """
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(_card(summary), "utf-8")


def _card(summary: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from jinja2 import Environment

    arguments = summary["arguments"]
    name, start = Path(arguments["out"]).resolve().name, arguments["model"]
    on_hub = start not in OURS and not is_local(start)
    license = "unknown" if is_local(start) else LICENSES.get(start, "unknown")
    reward = EvalResult(
        task_type="reinforcement-learning",
        dataset_type="TextSentiment-v0",
        dataset_name="TextSentiment-v0",
        metric_type="mean_reward",
        metric_value=round(summary["after"]["reward"], 4),
    )
    data = ModelCardData(
        language="en",
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=start if on_hub else None,
        tags=["gpt2", "reinforcement-learning", "reinforce", "text-sentiment-env"],
        model_name=name,
        eval_results=[reward],
    )
    origins = {
        "random": "A small GPT-2, trained from random weights",
        "reviews": "The GPT-2 `reviews` of text-sentiment-env, trained further",
    }
    limits = [REVIEWS_TERMS] if start == "reviews" else []
    if license == "unknown":
        limits.append("Its license is that of its start model: look it up before you publish this.")
    template = resources.files("agents") / "data" / "model_card.md.j2"
    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # Markdown: nothing to escape
    text = environment.from_string(template.read_text("utf-8")).render(
        card_data=data.to_yaml(),
        name=name,
        origin=origins.get(start, f"The GPT-2 {_public(start)}, trained further"),
        judge=_public(arguments["sentiment_model"]),
        vocabulary=f"the tokens of the vocabulary `{arguments['vocabulary']}`"
        + (", and a prompt may hold no others" if arguments["vocabulary"] == "small" else ""),
        example="The movie" if arguments["vocabulary"] == "gpt2" else "the movie",
        command=_public_command(arguments),
        rows=measure_rows(summary),
        limits=limits,
        summary=summary,
        arguments=arguments,
    )
    return str(ModelCard(text))


def _public(model: str) -> str:
    """The name of a model, without the paths of this machine."""
    return "of a local directory" if is_local(model) else f"`{model}`"


def _public_command(arguments: Mapping[str, Any]) -> str:
    """The command, in which files and directories of this machine are named without their folders."""
    values = {name: arguments[name] for name in PATHS}
    names = {
        name: Path(value).expanduser().resolve().name
        for name, value in values.items()
        if value and is_local(value)
    }
    return training_command(arguments, names)
