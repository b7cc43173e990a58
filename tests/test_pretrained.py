import json
import math
import os
import threading
import time

import pytest
import safetensors.torch
import torch
import transformers
from gpt2_helpers import SIZE, SIZES, huggingface, ours, random_ids
from huggingface_hub.errors import LocalEntryNotFoundError

from agents import pretrained
from agents.gpt2 import END_OF_TEXT_ID, GPT2, GPT2Config
from text_sentiment_env.vocabulary import byte_characters, gpt2_token_bytes


@pytest.fixture(scope="module")
def hf():
    return huggingface(torch.float32, **SIZE, bos_token_id=7, eos_token_id=7)


@pytest.fixture
def saved(hf, tmp_path):
    """A directory as transformers writes it."""
    hf.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Alters the tensors of a saved model, as old or foreign tools would have written them."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(change(tensors) or tensors, file)


def set_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def assert_same_weights(got, want):
    got, want = got.state_dict(), want.state_dict()
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


# Layouts


@pytest.mark.parametrize("size", SIZES)
def test_what_transformers_saves_is_loaded(size, tmp_path):
    hf = huggingface(torch.float32, **size)
    hf.save_pretrained(tmp_path)
    gpt2 = GPT2.from_pretrained(tmp_path)
    assert_same_weights(gpt2, ours(hf))
    assert not gpt2.training
    assert all(p.requires_grad for p in gpt2.parameters())


def without_prefix(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_buffers(tensors):
    n = SIZE["n_positions"]
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, n, n, dtype=torch.uint8).tril()
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)


def with_head(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()


@pytest.mark.parametrize(
    "change",
    [without_prefix, with_buffers, with_head, lambda t: without_prefix(with_buffers(t) or t)],
)
def test_layouts_found_in_the_wild_are_loaded(hf, saved, change):
    rewrite(saved, change)
    assert_same_weights(GPT2.from_pretrained(str(saved)), ours(hf))


def test_shards_are_loaded(hf, tmp_path):
    hf.save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert_same_weights(GPT2.from_pretrained(tmp_path), ours(hf))
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks \['{shards[1].name}'\] of its shards"):
        GPT2.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_another_dtype_are_loaded(dtype, tmp_path):
    hf = huggingface(dtype, **SIZE)
    hf.save_pretrained(tmp_path)
    gpt2 = GPT2.from_pretrained(tmp_path)
    assert {p.dtype for p in gpt2.parameters()} == {torch.float32}
    assert_same_weights(gpt2, ours(hf).float())
    assert_same_weights(GPT2.from_pretrained(tmp_path, dtype=dtype), ours(hf))


def test_pickled_weights_are_read_only_on_request(hf, saved):
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pass allow_pickle=True"):
        GPT2.from_pretrained(saved)
    assert_same_weights(GPT2.from_pretrained(saved, allow_pickle=True), ours(hf))
    (saved / "pytorch_model.bin").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        GPT2.from_pretrained(saved, allow_pickle=True)


class Malicious:
    def __reduce__(self):
        return pytest.fail, ("pickled code ran",)


def test_allowing_pickle_still_runs_no_code(saved):
    (saved / "model.safetensors").unlink()
    torch.save({"wte.weight": Malicious()}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        GPT2.from_pretrained(saved, allow_pickle=True)


def test_the_files_may_go_once_a_model_is_loaded(saved):
    gpt2 = GPT2.from_pretrained(saved)
    want = gpt2.wte.weight.detach().clone()
    file = saved / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)  # in place: a memory map would see it
    assert torch.equal(gpt2.wte.weight, want)


# Round trips


def test_round_trip_through_ours_keeps_weights_and_config(hf, saved, tmp_path):
    GPT2.from_pretrained(saved).save_pretrained(tmp_path / "ours")
    back, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert {name: problems for name, problems in info.items() if problems} == {}
    assert_same_weights(back, hf)
    first = transformers.GPT2LMHeadModel.from_pretrained(saved)
    want, got = first.config.to_dict(), back.config.to_dict()
    ignored = {"_name_or_path", "attn_pdrop", "embd_pdrop", "resid_pdrop"}  # off here by default
    for name in want.keys() - ignored:
        assert got[name] == want[name], name
    assert got["bos_token_id"] == got["eos_token_id"] == 7
    ids = random_ids(hf.config, 2, 9)
    torch.testing.assert_close(back(ids).logits, hf(ids).logits)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_save_is_loaded_again(dtype, tmp_path):
    gpt2 = ours(huggingface(torch.float32, **SIZES[1]))
    gpt2.save_pretrained(tmp_path, dtype)
    assert_same_weights(
        GPT2.from_pretrained(tmp_path, dtype=dtype or torch.float32), gpt2.to(dtype)
    )
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert back.dtype == (dtype or torch.float32)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_token_ids_and_dropout_survive_also_through_transformers(tmp_path):
    config = GPT2Config(
        vocab_size=3,
        n_positions=5,
        n_embd=8,
        n_layer=1,
        n_head=2,
        dropout=0.25,
        token_ids=(11, END_OF_TEXT_ID, 4),
    )
    gpt2 = GPT2(config)
    gpt2.save_pretrained(tmp_path / "ours")
    loaded = GPT2.from_pretrained(tmp_path / "ours")
    assert loaded.config == config
    assert loaded.end_index == 1
    assert_same_weights(loaded, gpt2)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (1, 1)
    theirs.save_pretrained(tmp_path / "theirs")
    assert GPT2.from_pretrained(tmp_path / "theirs").config == config
    assert GPT2.from_pretrained(tmp_path / "theirs", dropout=0.0).config.dropout == 0


def test_configs_transformers_allows_are_read():
    sizes = {"model_type": "gpt2", **SIZE}
    assert GPT2Config.from_dict(sizes).eos_token_id is None  # 50256 is no row of 97
    assert GPT2Config.from_dict(sizes | {"eos_token_id": [3, 4]}).eos_token_id is None
    assert GPT2Config.from_dict(sizes | {"attn_pdrop": 0.1}).dropout == 0
    old = {"architectures": ["GPT2LMHeadModel"], **SIZE}  # without model_type
    assert GPT2Config.from_dict(old) == GPT2Config(**SIZE)
    assert GPT2Config.from_dict({"model_type": "gpt2"}).eos_token_id == END_OF_TEXT_ID


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_saved_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "other").touch()
    GPT2(GPT2Config(**SIZE)).save_pretrained(tmp_path)
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_a_failing_save_leaves_the_earlier_one(tmp_path, monkeypatch):
    first, second = GPT2(GPT2Config(**SIZE)), GPT2(GPT2Config(**SIZES[2]))
    first.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(pretrained, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        second.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert_same_weights(GPT2.from_pretrained(tmp_path), first)


# Refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.BertConfig(), "model_type='bert'"),
        (transformers.GPTNeoConfig(), "model_type='gpt_neo'"),
        (transformers.LlamaConfig(architectures=["LlamaForCausalLM"]), "LlamaForCausalLM"),
    ],
)
def test_other_architectures_are_refused_by_name(config, message, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{message}.*only GPT-2"):
        GPT2.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "variant",
    [
        {"activation_function": "relu"},
        {"activation_function": "gelu"},  # the exact one, not the tanh approximation
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
        {"tie_word_embeddings": False},
    ],
)
def test_variants_that_are_not_implemented_are_refused(variant, saved):
    set_config(saved, **variant)
    (name, value), *_ = variant.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}, a variant of GPT-2 that is not"):
        GPT2.from_pretrained(saved)


def change_head(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


def drop(tensors):
    del tensors["transformer.h.0.mlp.c_fc.bias"]


def add(tensors):
    tensors["transformer.h.1.ln_1.weight"] = torch.ones(24)


def transpose(tensors):
    name = "transformer.h.0.mlp.c_fc.weight"
    tensors[name] = tensors[name].T.contiguous()


def deepen(tensors):
    tensors["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(24, 96, 1)


def quantise(tensors):
    tensors["transformer.ln_f.bias"] = torch.zeros(24, dtype=torch.int8)


def spoil(tensors):
    tensors["transformer.ln_f.bias"][3] = math.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantise, r"ln_f\.bias holds numbers of type torch\.int8"),
        (spoil, r"ln_f\.bias holds NaN, infinity, or a number too large for torch\.float32"),
        (change_head, r"lm_head\.weight differs from wte\.weight"),
        (drop, r"missing \['h\.0\.mlp\.c_fc\.bias'\], unexpected \[\]"),
        (add, r"missing \[\], unexpected \['h\.1\.ln_1\.weight'\]"),
        (transpose, r"h\.0\.mlp\.c_fc\.weight has shape \(96, 24\), .* makes it \(24, 96\)"),
        (deepen, r"h\.0\.mlp\.c_fc\.weight has shape \(24, 96, 1\), .* makes it \(24, 96\)"),
    ],
)
def test_tensors_that_are_not_the_configs_are_refused_by_name(change, message, saved):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        GPT2.from_pretrained(saved)


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_a_tokenizer_of_another_vocabulary_is_refused(file, saved):
    """Its texts would be read and written as GPT-2's tokens, which are other words."""
    tokens = ["".join(byte_characters()[b] for b in token) for token in gpt2_token_bytes()[:300]]

    def write(tokens):
        vocabulary = {token: i for i, token in enumerate(tokens)}
        content = vocabulary if file == "vocab.json" else {"model": {"vocab": vocabulary}}
        (saved / file).write_text(json.dumps(content))

    write(tokens)
    GPT2.from_pretrained(saved)
    write([*tokens[:260], "Ġel", *tokens[261:]])
    with pytest.raises(ValueError, match="tokenizer of its own: its token 260 is 'Ġel'"):
        GPT2.from_pretrained(saved)


def test_a_tokenizer_that_is_no_byte_pair_encoding_is_refused(saved):
    (saved / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0]]}}))
    with pytest.raises(ValueError, match="tokenizer of its own"):
        GPT2.from_pretrained(saved)


def test_config_of_another_size_is_refused(saved):
    set_config(saved, vocab_size=98)
    with pytest.raises(
        ValueError, match=r"wte\.weight has shape \(97, 24\), .* makes it \(98, 24\)"
    ):
        GPT2.from_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(name, kept, saved):
    file = saved / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=f"{name} is damaged or truncated: fetch it again"):
        GPT2.from_pretrained(saved)


def test_directories_without_a_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        GPT2.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is no directory"):
        GPT2.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"\./nowhere is no directory"):
        GPT2.from_pretrained("./nowhere")


@pytest.mark.parametrize("name", ["gpt2", "nobody/has-this", "three/part/name", "what is this?"])
def test_without_the_hub_a_local_directory_is_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="local cache .* pass the path of a directory"):
        GPT2.from_pretrained(name, local_files_only=True)


def test_no_connection_to_the_hub(monkeypatch):
    from huggingface_hub import errors

    def download(*_args, **_kwargs):
        raise errors.LocalEntryNotFoundError("An error happened while trying to locate the file")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="'gpt2' could not be read on the Hugging Face hub"):
        GPT2.from_pretrained("gpt2")


@pytest.mark.parametrize(
    ("name", "near"), [("review", "reviews"), ("gpt3", "gpt2"), ("GPT2", "gpt2")]
)
def test_the_nearest_name_is_suggested_and_no_hub_asked(name, near, monkeypatch):
    monkeypatch.setattr(pretrained, "hub_error", None)
    with pytest.raises(ValueError, match=f"the model '{name}' is unknown: did you mean '{near}'"):
        GPT2.from_pretrained(name)


def test_a_silent_hub_is_waited_for_a_few_seconds(tmp_path, monkeypatch):
    """Once for all files; its local cache is left."""
    asked = threading.Event()

    def silent(*_args, **_kwargs):
        assert not asked.is_set()
        asked.set()
        time.sleep(60)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="on the Hugging Face hub .TimeoutError"):
        GPT2.from_pretrained("owner/model")
    assert time.monotonic() - began < 30


def test_a_model_in_the_hubs_cache_is_loaded(hf, saved, monkeypatch):
    asked = []

    def download(name, file, **options):
        asked.append((name, options))
        if not (saved / file).exists():
            raise LocalEntryNotFoundError(file)
        return str(saved / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    gpt2 = GPT2.from_pretrained("user/name", revision="v1", local_files_only=True)
    assert_same_weights(gpt2, ours(hf))
    assert asked == [("user/name", {"revision": "v1", "local_files_only": True})] * len(asked)


def test_the_models_own_name_without_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="'reviews' is missing from this installation"):
        GPT2.from_pretrained("reviews")


def test_the_models_own_name_is_a_directory_of_the_package(hf, tmp_path, monkeypatch):
    hf.save_pretrained(tmp_path / "data" / "reviews")
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    assert_same_weights(GPT2.from_pretrained("reviews"), ours(hf))
