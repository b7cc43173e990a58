"""Models in Hugging Face's format: find the files, read the tensors, convert their layout.

Hugging Face keeps four weights of a GPT-2 block as (in, out), the transpose of `nn.Linear`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from agents.atomic import atomic_write
from agents.sampling import NonFiniteError
from text_sentiment_env.hub import hub_error, nearest
from text_sentiment_env.vocabulary import byte_characters, gpt2_token_bytes

KNOWN = ("reviews", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
FindFile = Callable[[str], Path | None]


# ------------------------------------------------------------------------------------------- find


def find_files(name: str, revision: str | None = None, local_files_only: bool = False) -> FindFile:
    """A function from a file's name to its path; None if the model `name` has no such file.

    Args:
        name: `"reviews"` (in this package), a directory, or a model of the Hugging Face hub.
        revision: the hub's branch, tag or commit.
        local_files_only: reads the hub's models from the local cache alone.

    Raises:
        ValueError: for a name that is nearly a known one, which is suggested.
        FileNotFoundError: if there is no such directory. The function raises it too, for a model
            that the hub does not have or that cannot be downloaded.
    """
    folder = Path(name).expanduser()
    if name == "reviews":
        folder = Path(str(resources.files("agents"))) / "data" / "reviews"
        if not folder.is_dir():
            raise FileNotFoundError(
                "the model 'reviews' is missing from this installation of the package: reinstall"
                " it, or pass the directory of another GPT-2"
            )
    if folder.is_dir():
        return lambda file: path if (path := folder / file).is_file() else None
    if folder.is_absolute() or name.startswith((".", "~")):
        raise FileNotFoundError(f"{name} is no directory: pass that of a GPT-2, or a hub name")
    if "/" not in name and (near := nearest(name, KNOWN)):
        raise ValueError(
            f"the model {name!r} is unknown: did you mean {near!r}? Other values are a directory, or a"
            " GPT-2 of the Hugging Face hub, such as 'owner/model'"
        )
    # Once, when the first file is asked for: without the hub its local cache is left.
    hub = cache(lambda: None if local_files_only else hub_error(name, revision))
    return lambda file: _download(name, file, revision, local_files_only, hub())


def _download(
    name: str, file: str, revision: str | None, local_files_only: bool, hub: Exception | None
) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    cached = local_files_only or hub is not None
    try:
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=cached))
    except errors.LocalEntryNotFoundError as error:  # no connection, or none wanted
        if file != "config.json":
            return None
        cause: Exception = error
    except errors.EntryNotFoundError:
        return None
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        cause = error
    where = "in the local cache" if local_files_only else "on the Hugging Face hub"
    raise FileNotFoundError(
        f"{name!r} could not be read {where} ({type(hub or cause).__name__}). On a machine without the"
        " hub pass the path of a directory that holds its config.json and model.safetensors,"
        " or 'reviews', the model in this package"
    ) from cause


# ------------------------------------------------------------------------------------------- read


def read_config(find_file: FindFile, name: str) -> dict[str, Any]:
    """The values of a model's config.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or the model's tokenizer is not GPT-2's.
    """
    file = find_file("config.json")
    if file is None:
        inner = Path(name) / "gpt2"
        hint = f"pass {inner}, the run's model" if inner.is_dir() else "is it a model's folder?"
        raise FileNotFoundError(f"{name} holds no config.json: {hint}")
    config = _read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no config: fetch it again")
    if config.get("token_ids") is None:
        _check_tokenizer(find_file, name)
    return config


def _check_tokenizer(find_file: FindFile, name: str) -> None:
    """Raises ValueError for a model that comes with another tokenizer than GPT-2's."""
    file = find_file("vocab.json") or find_file("tokenizer.json")
    if file is None:
        return
    content = _read_json(file)
    vocabulary = content["model"].get("vocab") if "model" in content else content
    rows = {i: token for token, i in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    for i, token in enumerate(gpt2_token_bytes()):
        ours = "".join(byte_characters()[b] for b in token)
        if not rows or rows.get(i, ours) != ours:
            raise ValueError(
                f"{name} has a tokenizer of its own: its token {i} is {rows.get(i)!r}, GPT-2's is"
                f" {ours!r}. Vocabularies here are of GPT-2's tokens: use a model that was made with"
                " GPT-2's tokenizer"
            )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged or truncated: fetch it again") from error


def read_weights(
    find_file: FindFile, name: str, n_layer: int, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """A checkpoint's tensors under their own names, from one file or from shards.

    Args:
        find_file: of `find_files`.
        name: of the model.
        n_layer: that there must at least be, so that no larger model is built.
        allow_pickle: also reads `pytorch_model.bin`.

    Raises:
        FileNotFoundError: if the weights, or one of their shards, are missing.
        ValueError: if a file is damaged.
    """
    weights: dict[str, Tensor] = {}
    files = [find_file("model.safetensors")]
    if files == [None] and (index := find_file("model.safetensors.index.json")):
        shards = _shards(index)
        files = [find_file(shard) for shard in shards]
        if None in files:
            lost = [shard for shard, file in zip(shards, files, strict=True) if file is None]
            raise FileNotFoundError(f"{name} lacks {lost} of its shards: fetch it again")
    if files == [None] and allow_pickle and (file := find_file("pytorch_model.bin")):
        files = []
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
                raise ValueError("it holds other things than tensors")
        except Exception as error:
            raise ValueError(f"{file} is damaged or truncated: fetch it again") from error
    for file in files:
        if file is None:
            raise FileNotFoundError(
                f"{name} holds no model.safetensors, or none could be fetched: if it holds a"
                " pytorch_model.bin that you trust, pass allow_pickle=True"
            )
        try:
            tensors = load_file(file)
            with safetensors.safe_open(file, "pt") as opened:
                digest = (opened.metadata() or {}).get("sha256")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is damaged or truncated: fetch it again") from error
        if digest not in (None, _digest(tensors)):
            raise ValueError(f"{file} is damaged, its tensors have another SHA-256: fetch it again")
        weights |= tensors
    layers = sum(key.endswith(".ln_1.weight") for key in weights)
    if n_layer > layers:
        raise ValueError(
            f"{name} is not the config's GPT-2: n_layer={n_layer}, the weights have {layers} layers"
        )
    return weights


def _shards(index: Path) -> list[str]:
    """The files that an index names, all in its own folder."""
    content = _read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:")
        for name in names.values()
    ):
        raise ValueError(f"{index} names no safetensors files of its own folder: fetch it again")
    return sorted(set(names.values()))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes; safetensors has no checksum of its own."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- convert


def _is_conv1d(name: str) -> bool:
    """Whether Hugging Face keeps this weight as (in, out)."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def convert_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Hugging Face's tensors as the state dict of a GPT-2, every name and shape checked.

    Args:
        weights: what the checkpoint holds.
        expected: the model's state dict, of which names and shapes count (on the meta device).
        dtype: of the result.

    Raises:
        ValueError: if a tensor is missing, unexpected, of another shape, or holds whole numbers, NaN or
            infinity, or if the head is untied.
    """
    # Old files carry the causal mask as buffers, h.0.attn.bias and h.0.attn.masked_bias.
    given = {
        name.removeprefix("transformer."): tensor
        for name, tensor in weights.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    head = given.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, given.get("wte.weight", head)):
        raise ValueError(
            "lm_head.weight differs from wte.weight: GPT-2's head is its token embedding, and an"
            " untied one is not implemented"
        )
    missing, unexpected = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unexpected:
        raise ValueError(
            f"the weights are not those of the config's GPT-2: missing {sorted(missing)[:6]},"
            f" unexpected {sorted(unexpected)[:6]}"
        )
    state = {}
    for name, meta in expected.items():
        tensor, shape = given[name], meta.t().shape if _is_conv1d(name) else meta.shape
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the config makes it {tuple(shape)}:"
                " config.json and the weights are of different models"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} holds numbers of type {tensor.dtype}: its weights must be floats"
            )
        # A copy, because loaded tensors share the file's memory map.
        state[name] = torch.empty(meta.shape, dtype=dtype).copy_(
            tensor.t() if _is_conv1d(name) else tensor
        )
        if not state[name].isfinite().all():
            raise ValueError(f"{name} holds NaN, infinity, or a number too large for {dtype}")
    return state


# ------------------------------------------------------------------------------------------ write


def write_pretrained(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Writes config.json and model.safetensors in Hugging Face's layout.

    Both files are written under temporary names before either is renamed, so that a save that
    fails leaves an earlier one as it was.

    Raises:
        NonFiniteError: if a weight is not finite.
    """
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{name} holds NaN or infinity: such a model is not written")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        "transformer." + name: (tensor.t() if _is_conv1d(name) else tensor)
        .to("cpu", dtype)
        .contiguous()
        for name, tensor in state.items()
    }
    values = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
    with (
        atomic_write(folder / "config.json") as config_file,
        atomic_write(folder / "model.safetensors") as weights_file,
    ):
        config_file.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        # Not save_file: it has a temporary file of its own, and tells a full disk as no OSError.
        content = save(weights, {"format": "pt", "sha256": _digest(weights)})
        with open(weights_file, "wb") as file:
            header = _sorted_header(content)
            file.write(header)
            file.write(memoryview(content)[len(header) :])


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file's beginning, its metadata sorted: they come in random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(end - 8)
