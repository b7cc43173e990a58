"""The checkpoint format: JSON and safetensors in one zip file. Loading one runs no pickled code."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents import distributed
from agents.atomic import atomic_write
from agents.gpt2 import GPT2Config
from agents.sampling import NonFiniteError

FORMAT = "text-sentiment-env/1"
NEWEST, INCOMING = "checkpoint.zip", "checkpoint-new.zip"  # of a run; INCOMING while others move
COUNTERS = (  # of a run
    *("num_timesteps", "_n_updates", "_first_update", "_episode_num"),
    "_current_progress_remaining",
)
GROUPS = ("policy", "optimizer", "reference", "baseline")  # of tensors
Target = str | os.PathLike[str] | io.BufferedIOBase | IO[bytes]


# ----------------------------------------------------------------------------------------- archive


def write_archive(
    target: Target, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
) -> None:
    """Writes JSON-able `data` and groups of named tensors; a file appears whole or not at all."""
    if not isinstance(target, str | os.PathLike):
        return _write_zip(target, data, tensors)
    path = _with_suffix(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        _write_zip(file, data, tensors)


def _write_zip(
    file: io.BufferedIOBase | IO[bytes], data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
) -> None:
    contents = json.dumps({"format": FORMAT, **data}, default=_as_python)
    members = {"checkpoint.json": contents.encode()}
    for name, group in tensors.items():
        check_finite(name, group)
        stored = {key: t.detach().cpu().contiguous() for key, t in group.items()}
        members[f"{name}.safetensors"] = safetensors.torch.save(stored)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    members["manifest.json"] = json.dumps(digests).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _as_python(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a checkpoint cannot hold {value!r}")


def check_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises NonFiniteError if one of the tensors of group `name` holds NaN or infinity."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"{name}: {key} holds NaN or infinity, which is never saved nor loaded: go on from an"
                " earlier checkpoint, with a lower learning_rate"
            )


def read_archive(source: Target) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Reads an archive of `write_archive`, of which every member is checked before it is used.

    Members must be stored as they are, in no folder, and have the SHA-256 that the manifest names.
    Archives from before there was a manifest have none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, or another program's checkpoint.
    """
    if isinstance(source, str | os.PathLike):
        given = Path(source)
        if not given.is_file():  # a run's folder, or a file without its suffix
            inside = checkpoints_in(given)
            source = inside[0] if inside else _with_suffix(given)
        if not Path(source).is_file():
            missing = given / NEWEST if given.is_dir() else source
            raise FileNotFoundError(f"there is no checkpoint {os.fspath(missing)!r}")
    try:
        with zipfile.ZipFile(source) as archive:
            members = _read_members(archive, str(source))
        data = json.loads(members.pop("checkpoint.json"), parse_constant=_refuse)
        groups = {
            # Sorted: safetensors has no order, and ranks that handle them together need one.
            Path(name).stem: dict(sorted(safetensors.torch.load(content).items()))
            for name, content in members.items()
        }
        for name, group in groups.items():
            check_finite(name, group)
    except (PermissionError, IsADirectoryError, _OthersFile):
        raise
    except Exception as error:  # zipfile raises errors of any kind about damaged files
        raise ValueError(_damaged(source, error)) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else data
        raise ValueError(f"{source} has the format {found!r}, this version reads {FORMAT!r}")
    return data, groups


def checkpoints_in(folder: Path) -> list[Path]:
    """A run's checkpoints there are, the newest first."""
    numbered = (p for p in folder.glob("checkpoint-*.zip") if p.stem[11:].isdigit())
    older = sorted(numbered, key=lambda path: int(path.stem[11:]))
    return [path for path in (folder / INCOMING, folder / NEWEST, *older) if path.is_file()]


class _OthersFile(ValueError):
    """A zip file that is no checkpoint of REINFORCE."""


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _damaged(source: Any, error: object) -> str:
    return (
        f"{source} is not a whole checkpoint ({error}): it was cut off or damaged; use an earlier"
        " one"
    )


def _read_members(archive: zipfile.ZipFile, source: str) -> dict[str, bytes]:
    """The contents of all members but the manifest, which they are checked against."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if "checkpoint.json" not in names:
        raise _OthersFile(
            f"{source} is not a checkpoint of REINFORCE: it holds {names[:4]}. Load it with the"
            " class that wrote it"
        )
    known = {"checkpoint.json", "manifest.json", *(f"{name}.safetensors" for name in GROUPS)}
    if len(set(names)) < len(names) or not known >= set(names):
        raise zipfile.BadZipFile(f"its members are {names[:8]}")
    assert archive.fp is not None
    size = archive.fp.seek(0, io.SEEK_END)
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or size < sum(
        info.file_size for info in infos
    ):
        raise zipfile.BadZipFile("its members are not stored as they are")
    members = {name: archive.read(name) for name in names}
    if "manifest.json" in members:
        manifest = json.loads(members.pop("manifest.json"))
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
        if manifest != digests:
            listed = manifest if isinstance(manifest, dict) else {}
            wrong = [name for name in digests if digests[name] != listed.get(name)]
            raise zipfile.BadZipFile(f"{wrong or 'a member'} does not match the manifest")
    if missing := known - {"manifest.json"} - members.keys():
        raise zipfile.BadZipFile(f"it lacks {sorted(missing)}")
    return members


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".zip" else path.parent / f"{path.name}.zip"


# ---------------------------------------------------------------------------------------- contents


def check_algorithm(data: dict[str, Any], name: str) -> None:
    """Warns if a checkpoint was saved by a class of another name than `name`, which loads it.

    Checkpoints from before the name was kept have none.

    Raises:
        ValueError: if what it holds is no name.
    """
    saved_by = data.get("algorithm", name)
    if not isinstance(saved_by, str):
        raise ValueError(f"the checkpoint's algorithm {saved_by!r} is damaged: use an earlier one")
    if saved_by != name:
        warnings.warn(
            f"the checkpoint was saved by {saved_by[:80]!r} and is loaded by {name}, which may train by"
            " other rules: load it with the class that saved it",
            stacklevel=3,
        )


def check_contents(
    data: dict[str, Any], tensors: dict[str, dict[str, Tensor]], arguments: Iterable[str]
) -> None:
    """Checks what a checkpoint says of itself before a model of that size is built.

    Args:
        data: its JSON.
        tensors: its groups.
        arguments: that it must hold.

    Raises:
        ValueError: naming the entry that is missing, of another kind, or does not fit the weights.
    """
    kinds = {
        **{"arguments": dict, "policy_kwargs": dict, "observation_length": int, "counters": dict},
        **{"optimizer_groups": list, "prompt_generator": dict, "random_state": dict},
    }
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise ValueError(f"the checkpoint's {name} is damaged: use an earlier one")
    if data["arguments"].keys() != set(arguments):
        wrong = sorted(data["arguments"].keys() ^ set(arguments))
        raise ValueError(
            f"the checkpoint lacks or adds the arguments {wrong}: load it with the class that saved it,"
            " or use an earlier one"
        )
    _check_counters({"observation_length": data["observation_length"], **data["counters"]})
    config, weights = data["policy_kwargs"].get("config"), tensors["policy"]
    if not isinstance(config, dict):
        raise ValueError("the checkpoint's policy_kwargs have no config: use an earlier one")
    inner = _size(weights, "gpt2.h.0.mlp.c_fc.weight", 0)
    sizes = {
        "vocab_size": _size(weights, "gpt2.wte.weight", 0),
        "n_positions": _size(weights, "gpt2.wpe.weight", 0),
        "n_embd": _size(weights, "gpt2.wte.weight", 1),
        "n_layer": len([name for name in weights if name.endswith(".ln_1.weight")]),
    }
    if config.get("n_inner") is not None:
        sizes["n_inner"] = inner
    for name, size in sizes.items():
        if not same_json(config.get(name), size):
            raise ValueError(
                f"the checkpoint's config has {name}={config.get(name)!r}, its weights {size}: use an"
                " earlier one"
            )
    if not same_json(config, GPT2Config.from_dict(config).to_dict()):
        raise ValueError("the checkpoint's config is damaged: use an earlier one")
    others = data.get("other_ranks", [])
    if not isinstance(others, list):
        raise ValueError("the checkpoint's other_ranks is damaged: use an earlier one")
    for state in ({**data["random_state"], "prompts": data["prompt_generator"]}, *others):
        _check_random_state(state)
    if tensors["baseline"].keys() - {"ema"} or any(
        t.ndim != 1 for t in tensors["baseline"].values()
    ):
        raise ValueError("the checkpoint's baseline is damaged: use an earlier one")


@contextmanager
def checked(part: str) -> Iterator[None]:
    """Turns an error of building a model into a ValueError that names this part of the checkpoint."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint's {part} make no model ({error}): use an earlier one, or pass the class"
            " that it was saved with"
        ) from error


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, where 1 is neither 1.0 nor true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _check_counters(counters: dict[str, Any]) -> None:
    progress = counters.get("_current_progress_remaining")
    whole = [value for name, value in counters.items() if name != "_current_progress_remaining"]
    if (
        counters.keys() != {"observation_length", *COUNTERS}
        or not all(type(value) is int and 0 <= value < 2**62 for value in whole)
        or not isinstance(progress, int | float)
        or isinstance(progress, bool)
        or not 0 <= progress <= 1
    ):
        raise ValueError(f"the checkpoint's counters {counters} are damaged: use an earlier one")


def _size(weights: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    tensor = weights.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim == 2 else None


def check_tensors(name: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless group `name` holds the expected tensors: shapes and dtypes."""
    shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()}
    given = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
    if wrong := sorted(k for k in shapes | given if shapes.get(k) != given.get(k)):
        raise ValueError(
            f"the checkpoint's {name} does not fit the model: {wrong[:4]} are missing, unexpected or"
            " of another shape or dtype; use an earlier one"
        )


def optimizer_class(name: Any, given: type | None) -> type[torch.optim.Optimizer]:
    """The optimizer that a checkpoint names.

    Args:
        name: of its class.
        given: the class that the caller passes, for one that is not in torch.optim.

    Raises:
        ValueError: if it is another than the named one, or has to be given.
    """
    found = given or getattr(torch.optim, str(name), None)
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer):
        raise ValueError(
            f"the checkpoint's optimizer_class is {name!r}, which is not in torch.optim: pass the class,"
            " load(..., optimizer_class=...)"
        )
    if found.__name__ != name:
        raise ValueError(
            f"optimizer_class={found.__name__} is not the checkpoint's {name!r}: pass that one"
        )
    return found


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[list[Any], dict[str, Tensor]]:
    """An optimizer's parameter groups, JSON-able, and its tensors by `index.name`."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return state["param_groups"], tensors


def optimizer_state_dict(
    groups: list[Any], tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The inverse of `optimizer_state`, for `load_state_dict` of `optimizer`.

    Raises:
        ValueError: if it is not the state of such an optimizer.
    """
    own = optimizer.state_dict()["param_groups"]
    fits = len(own) == len(groups) and all(map(_same_settings, own, groups))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        fits &= index.isdecimal()
        state.setdefault(int(index) if index.isdecimal() else -1, {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # A parameter without gradient, such as an unused value head's, has no state.
    fits &= set(state) <= set(range(len(parameters)))
    if not fits or any(
        {name: value.shape for name, value in state[index].items()}
        != _state_shapes(optimizer, group, parameters[index])
        for group in own
        for index in group["params"]
        if index in state
    ):
        raise ValueError(
            "the checkpoint's optimizer does not fit the model: it was saved by another optimizer, or"
            " is damaged; use an earlier one"
        )
    return {"state": state, "param_groups": groups}


def _state_shapes(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> dict[str, torch.Size]:
    """What such an optimizer keeps of a parameter of this group: a step on zeros tells."""
    zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    zeros.grad = torch.zeros_like(zeros)
    fresh: Any = object.__new__(type(optimizer))
    state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
    vars(fresh).update(vars(optimizer), state=state, param_groups=[{**group, "params": [zeros]}])
    fresh.step()
    return {name: torch.as_tensor(value).shape for name, value in state[zeros].items()}


def _same_settings(own: dict[str, Any], given: Any) -> bool:
    """Whether two groups differ at most in numbers, such as the learning rate, of the same sign."""
    if not isinstance(given, dict) or own.keys() != given.keys():
        return False
    for name, value in own.items():
        other = given[name]
        numbers = value if isinstance(value, list | tuple) else [value]
        if name == "params" or any(type(n) not in (int, float) for n in numbers):
            if not same_json(value, other):
                return False
            continue
        others = other if isinstance(value, list | tuple) else [other]
        if not isinstance(others, list | tuple) or len(others) != len(numbers):
            return False
        limit = 1 if name == "betas" else math.inf
        signs = [-1 if n < 0 else 1 for n in numbers]  # Adafactor's beta2_decay is below 0
        if not all(
            type(n) in (int, float) and 0 <= sign * n < limit
            for n, sign in zip(others, signs, strict=True)
        ):
            return False
    return True


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
    set_row_states(env, saved[distributed.shard(len(saved))])


def set_row_states(env: VecEnv, states: Sequence[Mapping[str, Any]]) -> None:
    """Sets the rows' generators, of NumPy's `bit_generator.state` each."""
    for row, (generator, state) in enumerate(zip(env.get_attr("np_random"), states, strict=True)):
        generator.bit_generator.state = state
        # Rows in other processes answer with copies.
        if env.get_attr("np_random", [row])[0].bit_generator.state != state:
            env.set_attr("np_random", generator, [row])


def _check_random_state(state: dict[str, Any]) -> None:
    """Raises ValueError unless every generator, set to its state, returns the same state."""
    try:
        version, internal, gauss = state["python"]
        python, legacy, cpu = random.Random(), np.random.RandomState(), torch.Generator()
        python.setstate((version, tuple(internal), gauss))
        key = np.array(state["numpy"]["state"]["key"], np.uint32)
        legacy.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
        numpy_state: Any = legacy.get_state(legacy=False)
        numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
        cpu.set_state(_bytes(state["torch"]))
        pairs = [
            (python.getstate(), state["python"]),
            (numpy_state, state["numpy"]),
            (cpu.get_state().numpy().tobytes().hex(), state["torch"]),
            ([_bytes(cuda).numpy().tobytes().hex() for cuda in state["cuda"]], state["cuda"]),
        ]
        prompts = [state["prompts"]] if "prompts" in state else []
        for given in [*state["generators"], *prompts]:
            generator = np.random.default_rng()
            generator.bit_generator.state = given
            pairs.append((generator.bit_generator.state, given))
        whole = isinstance(state["generators"], list)
        whole &= gauss is None or isinstance(gauss, float)
        whole &= 0 <= state["numpy"]["state"]["pos"] <= 624
        flags = [g["has_uint32"] for g in [*state["generators"], *prompts]]
        whole &= all(flag in (0, 1) for flag in [*flags, state["numpy"]["has_gauss"]])
        if not whole or not all(same_json(held, given) for held, given in pairs):
            raise ValueError("no generator holds it")
    except Exception as error:  # generators raise errors of any kind about states of any kind
        raise ValueError(
            f"the checkpoint's random_state is damaged ({error!r}): use an earlier one"
        ) from error


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
