import math

import pytest
import torch
import torch.nn.functional as F
from gpt2_helpers import SIZES, huggingface

from agents import GPT2
from examples.verify_gpt2 import main


def spoil(monkeypatch, name, value):
    """Makes every GPT2 that is loaded differ from its file in one parameter."""
    load = GPT2.from_pretrained

    def from_pretrained(*args, **kwargs):
        gpt2 = load(*args, **kwargs)
        with torch.no_grad():
            gpt2.get_parameter(name)[3:5] += value
        return gpt2

    monkeypatch.setattr(GPT2, "from_pretrained", from_pretrained)


def rows(printed):
    """The stages of the printed table that differ, in order."""
    return [line.split("│")[1].strip() for line in printed.splitlines() if "differs │" in line]


def test_ours_is_transformers_gpt2(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("a random GPT-2: 2,500,320 parameters, compared in fp32")
    assert float(printed.split("largest difference of the logits: ")[1]) < 1e-4
    assert "first stage" not in printed


def test_stage_by_stage_in_float64(capsys):
    assert main(["--layers", "--dtype", "fp64", "--seed", "3", "--tolerance", "1e-9"]) == 0
    printed = capsys.readouterr().out
    stages = ["weights", "embeddings", "h.0.ln_1", "h.0.attn", "h.2.mlp", "ln_f", "logits"]
    assert [printed.index(f"│ {stage} ") for stage in stages] == sorted(
        printed.index(f"│ {stage} ") for stage in stages
    )
    assert rows(printed) == []


@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("wpe.weight", "embeddings"),
        ("h.0.attn.c_attn.bias", "h.0.attn"),
        ("h.1.ln_2.weight", "h.1.ln_2"),
        ("h.1.mlp.c_fc.weight", "h.1.mlp"),
        ("ln_f.bias", "ln_f"),
    ],
)
@pytest.mark.parametrize("value", [0.5, math.nan])
def test_a_wrong_weight_is_located(weight, stage, value, monkeypatch, capsys):
    spoil(monkeypatch, weight, value)
    assert main(["--layers"]) == 1
    printed = capsys.readouterr().out
    assert rows(printed)[:2] == [weight, stage]
    assert f"first stage that differs: {weight}" in printed


def test_wrong_code_is_located(monkeypatch, capsys):
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate: gelu(x))  # the exact one
    assert main(["--layers", "--tolerance", "1e-5"]) == 1
    assert rows(capsys.readouterr().out)[0] == "h.0.mlp"


def test_differences_up_to_the_tolerance_pass(monkeypatch, capsys):
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate: gelu(x))
    assert main(["--tolerance", "0.1"]) == 0
    assert main(["--tolerance", "1e-5"]) == 1
    assert "first stage that differs: h.0.mlp (see --layers)" in capsys.readouterr().out


@pytest.mark.parametrize("size", SIZES)
def test_models_in_a_directory(size, tmp_path, capsys):
    huggingface(torch.float16, **size).save_pretrained(tmp_path)
    assert main(["--model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: ")


def test_restricted_models(tmp_path):

    huggingface(torch.float32, **SIZES[2]).save_pretrained(tmp_path)
    GPT2.from_pretrained(tmp_path).restrict([5, 9, 1]).save_pretrained(tmp_path / "three")
    assert main(["--model", str(tmp_path / "three")]) == 0


def test_models_that_cannot_be_loaded(tmp_path, monkeypatch, capsys):
    def fails_with(message, *arguments):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line

    fails_with("holds no config.json", "--model", str(tmp_path))
    fails_with("--tolerance nan: must be a finite number", "--tolerance", "nan")

    def download(*_args, **_kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    fails_with("pass the path of a directory", "--model", "gpt2")
