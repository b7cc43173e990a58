"""The documents: their Python blocks run, their commands exist, their links resolve.

A Python block is executed as a reader would paste it: alone, in a fresh namespace. A comment on the line before it
changes that, and gives a reason:

    <!-- test: 50_000 -> 1_000; a minute otherwise -->      replaces text before the block runs; several by commas
    <!-- test: needs torchrl; an extra -->                  skips it where a module is missing
    <!-- test: skip; reason -->                             only compiles it
"""

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

import text_sentiment_env

ROOT = Path(__file__).parents[1]
FOLDERS = ("text_sentiment_env", "agents", "examples", "tests", ".github")
DOCUMENTS = [ROOT / "README.md"] + [p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.md"))]
# Modules that only an extra brings: a program that imports one has no --help without it.
EXTRAS = {"accelerate", "datasets", "ray", "sb3_contrib", "tensordict", "torchrl", "trl"}

HEADING = re.compile(r"^#+ +(.+?)\s*$", re.M)
FENCE = re.compile(
    r"(?:^<!-- test: (?P<marker>.*?) -->\n)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$",
    re.M | re.S,
)


class Block(NamedTuple):
    """A fenced block of a document."""

    name: str  # document#heading, numbered if a heading has several
    language: str
    code: str
    marker: str | None


def slug(heading):
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
    return text.strip().replace(" ", "-")


def blocks(document):
    text = document.read_text("utf-8")
    headings = [(match.start(), slug(match[1])) for match in HEADING.finditer(without_code(text))]
    found = []
    for match in FENCE.finditer(text):
        heading = [slug for place, slug in headings if place < match.start()][-1:] or [""]
        name = f"{document.relative_to(ROOT).as_posix()}#{heading[0]}"
        same = sum(block.name.split("-block-")[0] == name for block in found)
        name += f"-block-{same + 1}" if same else ""
        found.append(Block(name, match["language"], match["code"], match["marker"]))
    return found


def without_code(text):
    """The text with its fenced blocks blanked: a comment in them is no heading, a list no link."""
    return FENCE.sub(lambda match: " " * len(match[0]), text)


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh", "shell", "console")]


# -------------------------------------------------------------------------------- Python blocks run


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_block_runs_alone(block, tmp_path, monkeypatch):
    code = compile(as_tested(block), block.name, "exec")
    monkeypatch.chdir(tmp_path)
    if "my-classifier" in code.co_consts:
        make_classifier(tmp_path / "my-classifier")
    namespace, output = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    CHECKS.get(block.name, nothing)(SimpleNamespace(**namespace), output.getvalue())


def as_tested(block):
    """The block's code after what its marker says."""
    if block.marker is None:
        return block.code
    action, _, reason = block.marker.partition("; ")
    assert reason, f"{block.name}: give the marker a reason"
    if action == "skip":
        compile(block.code, block.name, "exec")
        pytest.skip(reason)
    if action.startswith("needs "):
        pytest.importorskip(action.removeprefix("needs "), reason=reason)
        return block.code
    code = block.code
    for replacement in action.split(", "):
        old, new = replacement.split(" -> ")
        assert old in code, f"{block.name}: {old} of the marker is not in the block"
        code = code.replace(old, new)
    return code


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_block_registers_the_environment_and_is_short(block):
    # The suite has imported the package already, so running a block would not tell.
    if re.search(r"""make(_vec)?\(\s*["']TextSentiment""", block.code):
        assert re.search(r"^(import|from) text_sentiment_env\b", block.code, re.M)
    assert len([line for line in block.code.splitlines() if line.strip()]) <= 12


def test_the_first_block_runs_in_a_fresh_interpreter(tmp_path):
    code = next(block.code for block in PYTHON if block.name.startswith("README.md#"))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # A text is empty if the first of the random tokens ends it: once in a hundred runs.
    assert re.match(r"[+-]\d\.\d\d ", done.stdout)


# ------------------------------------------------------------------------------- what blocks result in


def nothing(names, printed):
    pass


def play(env):
    """One episode a row with random tokens; the rewards and infos of its end."""
    if hasattr(env, "num_envs"):
        env.reset(seed=1)
        env.action_space.seed(1)
        ends = {}
        while len(ends) < env.num_envs:
            _, rewards, terminated, _, infos = env.step(env.action_space.sample())
            for row in np.flatnonzero(terminated):
                ends.setdefault(row, {k: infos[k][row] for k in infos} | {"reward": rewards[row]})
        return list(ends.values())
    env.reset(seed=1)
    env.action_space.seed(1)
    total, over = 0.0, False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample())
        total += reward
    return [info | {"reward": total}]


def check_environment(names, printed):
    assert printed.strip() == f"{names.reward:+.2f} {names.info['text']}".strip()


def check_agent(names, printed):
    assert len(printed.splitlines()) >= 3
    assert Path("runs/policy.zip").is_file()
    assert Path("runs/policy-gpt2/model.safetensors").is_file()


def check_own_judge(names, printed):
    for end in play(names.envs):
        assert end["sentiment"] == min(end["text"].count("!"), 4) / 2 - 1


def check_classifier(names, printed):
    assert {end["sentiment"] != 0 for end in play(names.envs)} == {True}


def check_prompts(names, printed):
    assert {end["text"].split()[0] for end in play(names.envs)} <= {"the", "I", "this"}
    assert "script" in printed
    assert names.infos["prompt"].tolist() == ["I love"] * 8


def check_own_vocabulary(names, printed):
    [end] = play(names.env)
    words = {"the", "food", "service", "was", "is", "good", "bad", "slow", "friendly", "."}
    assert set(end["text"].replace(".", " .").split()) <= words
    assert printed == " the food was good.\n"


def check_negative(names, printed):
    sentiment, reward = map(float, printed.split())
    assert sentiment < -0.5  # whichever version of the judge
    assert reward == -sentiment


def check_dense(names, printed):
    assert abs(float(printed.split("]")[1])) < 1e-9
    assert len(names.rewards) == 6


def check_further_term(names, printed):
    for end in play(names.envs):
        assert end["film"] == (0.2 if "film" in end["text"] else 0.0)
        assert end["reward"] == pytest.approx(
            end["sentiment"] - end["length_penalty"] - end["repetition_penalty"] + end["film"]
        )


def check_wrapper(names, printed):
    assert printed == "-0.01\n"
    [end] = play(names.env)
    written = end["length"] + (end["length"] < 20)
    expected = end["sentiment"] - end["length_penalty"] - end["repetition_penalty"]
    assert end["reward"] == pytest.approx(expected - 0.01 * written)


def check_make(names, printed):
    assert printed == "the movie Box(0, 100, (14,), int64)\n"


def check_vector_environment(names, printed):
    assert names.terminated.tolist() == [False, True, False]
    assert names.infos["_text"].tolist() == [False, True, False]


def check_judges(names, printed):
    good, bad, salad, empty = names.judge(
        ["What a wonderful film!", "A waste of time.", "great great great great", ""]
    )
    assert good > 0.8
    assert bad < -0.8
    assert abs(salad) < 0.005  # as the README says: 0.00
    assert empty == 0


def check_vocabularies(names, printed):
    assert "' the movie is not good.'" in printed
    assert printed.endswith("\n100 99 100\n")


def check_start_models(names, printed):
    assert printed.startswith("torch.Size([1, 1, 5120])\n")
    assert Path("my-gpt2/config.json").is_file()


def check_checkpoints(names, printed):
    assert names.model._n_updates >= 2
    assert Path("run.zip").is_file()


CHECKS = {
    "README.md#the-environment-in-ten-lines": check_environment,
    "README.md#the-agent-in-python": check_agent,
    "examples/README.md#your-own-judge": check_own_judge,
    "examples/README.md#a-hugging-face-classifier": check_classifier,
    "examples/README.md#prompts-from-a-file": check_prompts,
    "examples/README.md#your-own-vocabulary": check_own_vocabulary,
    "examples/README.md#negative-reviews": check_negative,
    "examples/README.md#dense-rewards": check_dense,
    "examples/README.md#a-further-term-of-the-reward": check_further_term,
    "examples/README.md#a-reward-wrapper": check_wrapper,
    "text_sentiment_env/README.md#make": check_make,
    "text_sentiment_env/README.md#vector-environment": check_vector_environment,
    "text_sentiment_env/README.md#judges": check_judges,
    "text_sentiment_env/README.md#vocabularies": check_vocabularies,
    "agents/README.md#start-models": check_start_models,
    "agents/README.md#checkpoints": check_checkpoints,
}


def test_every_check_has_its_block():
    assert CHECKS.keys() <= {block.name for block in PYTHON}


def make_classifier(folder):
    """A tiny BERT classifier with random weights in Hugging Face's layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "a"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)


# ------------------------------------------------------------------------------------ commands exist


def commands():
    """The flags that the documents give to each of our programs, by its path."""
    shown = [block.code for block in SHELL]
    for document in DOCUMENTS:
        text = without_code(document.read_text("utf-8"))
        shown += re.findall(r"`([^`]+)`", text)
        shown += re.findall(r"^    .*(?:\n    .*)*", text, re.M)
    flags = {}
    for code in shown:
        for line in re.sub(r"\\\n\s*", " ", code).splitlines():
            for program, arguments in re.findall(
                r"(?:python|torchrun [^#&|;]*?) ((?:examples|tests)/[\w/]+\.py)([^#&|;]*)", line
            ):
                flags.setdefault(program, set()).update(re.findall(r"(?<!\S)--[\w-]+", arguments))
    return flags


COMMANDS = commands()


def test_commands_are_found():
    assert {"--resume", "--preset", "--parallel"} & COMMANDS["examples/train_reinforce.py"]
    assert "--rounds" in COMMANDS["tests/benchmarks/bench_env.py"]


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_command_names_a_program_that_knows_its_flags(program, monkeypatch):
    assert (ROOT / program).is_file()
    text = help_of(ROOT / program, monkeypatch)
    known = set(re.findall(r"--[\w-]+", text))
    assert COMMANDS[program] <= known


def help_of(program, monkeypatch):
    """What `python program --help` prints, run in this process, which has imported torch."""
    monkeypatch.setattr(sys, "argv", [str(program), "--help"])
    monkeypatch.syspath_prepend(str(program.parent))
    before, output = set(sys.modules), io.StringIO()
    try:
        with (
            mock.patch.dict(os.environ, {"COLUMNS": "200"}),
            contextlib.redirect_stdout(output),
            pytest.raises(SystemExit) as exit_,
        ):
            runpy.run_path(str(program), run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{error.name} comes with an extra")
    finally:  # a program's helpers must not be taken for another's of the same name
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(program.parent):
                del sys.modules[name]
    assert exit_.value.code in (0, None)
    return output.getvalue()


def test_the_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    for command in (
        "python -m pip install -e . && python examples/train_reinforce.py",
        'python -m pip install -e ".[test]" && python -m pytest',
    ):
        assert f"```bash\n{command}\n```" in text


def test_the_picture_and_the_tables_of_results(tmp_path, capsys, monkeypatch):
    measures = ("sentiment", "vader", "kl", "gap", "distinct_texts", "perplexity", "length")
    for seed, sentiment in enumerate((0.8, 0.9)):
        run = tmp_path / f"seed{seed}"
        run.mkdir()
        ends = {"before": dict.fromkeys(measures, 0.0), "after": dict.fromkeys(measures, sentiment)}
        arguments = {"target_length": [8, 20], "length_penalty": 0.5, "seed": seed}
        summary = ends | {"arguments": arguments, "seconds": 60.0, "updates": 2}
        for when in ("before", "after"):
            summary[when] |= dict.fromkeys(("reward", "end_rate", "entropy"), 0.5)
        (run / "summary.json").write_text(json.dumps(summary), "utf-8")
        head = "train/n_updates,rollout/sentiment,rollout/length,train/kl"
        (run / "progress.csv").write_text(f"{head}\n1,0.1,9,0\n2,0.2,8,0.1\n", "utf-8")
        samples = [{"when": w, "reward": 0.5, "text": f" {w}."} for w in ("before", "after")]
        (run / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)), "utf-8")
    monkeypatch.syspath_prepend(ROOT / "examples" / "images")
    main = importlib.import_module("plot_runs").main
    runs = [str(tmp_path / "seed1"), str(tmp_path / "seed0")]
    assert main([*runs, "--out", str(tmp_path / "p.png"), "--texts", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    after = next(row for row in rows if row.startswith("| after |"))
    assert after.startswith("| after | +0.850 ± 0.050 |")  # (0.9 - 0.8) / 2: deviation / √2
    assert [row[:12] for row in rows if row[2:3].isdigit()] == ["| 0 | +0.800", "| 1 | +0.900"]
    assert rows[-1] == "| +0.50 | before. | +0.50 | after. |"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert main([runs[0], "--out", str(tmp_path / "new" / "p.png")]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*runs, "--out", str(tmp_path / "p.xyz")])
    assert "p.xyz: must end with .png, .pdf or .svg" in capsys.readouterr().err


def test_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {text_sentiment_env.__version__}\n" in text


# ------------------------------------------------------------------------------------- links resolve


def links():
    for document in DOCUMENTS:
        text = re.sub(r"`[^`\n]*`", "", without_code(document.read_text("utf-8")))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                yield document, target


@pytest.mark.parametrize(
    ("document", "target"),
    [pytest.param(*link, id=f"{link[0].relative_to(ROOT)}:{link[1]}") for link in links()],
)
def test_link_resolves(document, target):
    path, _, anchor = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    assert file.exists()
    if anchor:
        headings = HEADING.findall(without_code(file.read_text("utf-8")))
        assert anchor in map(slug, headings)


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if document.name == "README.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_tables_have_as_many_cells_as_their_head(document):
    rows = []
    for line in [*without_code(document.read_text("utf-8")).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(rows)) <= 1, f"{document.name}: a | in a cell must be written \\|"
            rows = []
