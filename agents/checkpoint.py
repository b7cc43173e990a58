"""Checkpoints as JSON and safetensors in one zip file: loading one runs no pickled code."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

FORMAT = "text-sentiment-env/1"
Target = str | os.PathLike[str] | io.BufferedIOBase


def write(target: Target, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
    """Writes JSON-able `data` and groups of named tensors.

    A file appears under its name only when it is whole: it is written beside it and renamed.
    """
    if isinstance(target, io.BufferedIOBase):
        return _write_zip(target, data, tensors)
    path = _with_suffix(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _write_zip(file, data, tensors)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_zip(
    file: io.BufferedIOBase, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("checkpoint.json", json.dumps({"format": FORMAT, **data}))
        for name, group in tensors.items():
            stored = {key: t.detach().cpu().contiguous() for key, t in group.items()}
            archive.writestr(f"{name}.safetensors", safetensors.torch.save(stored))


def read(source: Target) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Reads what `write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, or something else's checkpoint.
    """
    if not isinstance(source, io.BufferedIOBase):
        source = source if Path(source).is_file() else _with_suffix(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"there is no checkpoint {os.fspath(source)!r}")
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
            if "checkpoint.json" not in names:
                raise ValueError(
                    f"{source} is not a checkpoint of REINFORCE: it holds {names[:4]}. Load it with"
                    " the class that wrote it"
                )
            data = json.loads(archive.read("checkpoint.json"))
            if data["format"] != FORMAT:
                raise ValueError(
                    f"{source} has the format {data['format']!r}, this version reads {FORMAT!r}"
                )
            groups = [name for name in names if name.endswith(".safetensors")]
            return data, {
                Path(name).stem: safetensors.torch.load(archive.read(name)) for name in groups
            }
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source} is not a whole checkpoint ({error}): it was cut off or damaged; use an earlier"
            " one"
        ) from error


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


# ----------------------------------------------------------------------------------------- optimiser


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[list[Any], dict[str, Tensor]]:
    """An optimiser's parameter groups, JSON-able, and its tensors by `index.name`."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return state["param_groups"], tensors


def optimizer_state_dict(groups: list[Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `optimizer_state`, for `load_state_dict`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}


# ----------------------------------------------------------------------------------- random numbers


def random_state(generators: Iterable[np.random.Generator]) -> dict[str, Any]:
    """The state, JSON-able, of all global generators and of the given ones."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [s.numpy().tobytes().hex() for s in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
        "generators": [generator.bit_generator.state for generator in generators],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Sets the global generators to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = json.loads(json.dumps(state["numpy"]))
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_bytes(s) for s in state["cuda"]])


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
