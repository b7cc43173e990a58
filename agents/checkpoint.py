"""The checkpoint format: JSON and safetensors in one zip file. Loading one runs no pickled code."""

from __future__ import annotations

import io
import json
import os
import random
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents import distributed
from agents.atomic import atomic_write

FORMAT = "text-sentiment-env/1"
Target = str | os.PathLike[str] | io.BufferedIOBase


# ----------------------------------------------------------------------------------------- archive


def write_archive(
    target: Target, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
) -> None:
    """Writes JSON-able `data` and groups of named tensors; a file appears whole or not at all."""
    if isinstance(target, io.BufferedIOBase):
        return _write_zip(target, data, tensors)
    path = _with_suffix(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        _write_zip(file, data, tensors)


def _write_zip(
    file: io.BufferedIOBase, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("checkpoint.json", json.dumps({"format": FORMAT, **data}))
        for name, group in tensors.items():
            stored = {key: t.detach().cpu().contiguous() for key, t in group.items()}
            archive.writestr(f"{name}.safetensors", safetensors.torch.save(stored))


def read_archive(source: Target) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Reads an archive of `write_archive`.

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
                # In order: safetensors gives none, and ranks that handle them together need one.
                Path(name).stem: dict(sorted(safetensors.torch.load(archive.read(name)).items()))
                for name in groups
            }
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source} is not a whole checkpoint ({error}): it was cut off or damaged; use an earlier"
            " one"
        ) from error


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


# ---------------------------------------------------------------------------------------- contents


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


def restore_random_states(
    states: Sequence[dict[str, Any]], env: VecEnv, seed: int | None, updates: int
) -> None:
    """Puts all generators, global ones and those of the rows, where a checkpoint found them.

    With another number of processes or rows, it warns and gives each rank draws of its own.

    Args:
        states: one of `random_state` for each rank of the checkpoint.
        env: this rank's rows.
        seed: of the run.
        updates: made so far.
    """
    ranks = distributed.world_size()
    if len(states) == ranks:
        set_random_state(states[distributed.rank()])
    else:
        warnings.warn(
            f"the checkpoint is of {len(states)} processes, this run of {ranks}: tokens are drawn"
            " with other random numbers, and the run is not the uninterrupted one",
            stacklevel=3,
        )
        if seed is not None:
            distributed.seed_draws(seed, updates)
    saved = [generator for state in states for generator in state["generators"]]
    if len(saved) != env.num_envs * ranks:
        warnings.warn(
            f"the checkpoint has {len(saved)} rows, env {env.num_envs * ranks}: its rows draw their"
            " prompts anew, and the run is not the uninterrupted one",
            stacklevel=3,
        )
        return
    own = saved[distributed.shard(len(saved))]
    for row, (generator, state) in enumerate(zip(env.get_attr("np_random"), own, strict=True)):
        generator.bit_generator.state = state
        # Rows in other processes answer with copies.
        if env.get_attr("np_random", [row])[0].bit_generator.state != state:
            env.set_attr("np_random", generator, [row])


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
