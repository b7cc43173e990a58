"""Checkpoints as JSON and safetensors in one zip file: loading one runs no pickled code."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from agents import distributed
from agents.gpt2 import GPT2, GPT2Config
from agents.policy import GPT2Policy

if TYPE_CHECKING:
    from agents.reinforce import REINFORCE

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


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


# What a run counts.
_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_first_update",
    "_episode_num",
    "_current_progress_remaining",
)


class Checkpointed(BaseAlgorithm):
    """The part of REINFORCE that `save`, `load` and `set_parameters` are."""

    ARGUMENTS: ClassVar[tuple[str, ...]]
    policy: GPT2Policy
    reference: GPT2
    _ema: Tensor | None
    _prompt_generator: np.random.Generator
    _random_states: list[dict[str, Any]] | None

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def save(self, path: Target, exclude: Any = None, include: Any = None) -> None:
        """Writes a checkpoint: JSON and safetensors in a zip, whole or not at all.

        It holds what shapes the rest of the run: weights of policy and start model, optimiser,
        counters, baseline, and the states of Python's, NumPy's, torch's and every row's generators.
        Of several ranks all must call this; the first writes, and it is done when it returns.

        Args:
            path: a file, `.zip` is added; or a binary stream.
            exclude, include: SB3's, not supported.

        Raises:
            ValueError: for `exclude` or `include`.
        """
        if exclude or include:
            raise ValueError(
                "exclude and include are not supported: a checkpoint holds all it needs"
            )
        arguments = {name: getattr(self, name) for name in self.ARGUMENTS}
        if callable(arguments["learning_rate"]):
            arguments["learning_rate"] = None  # code isn't stored: `load` asks for it
        kwargs = {k: v for k, v in self.policy_kwargs.items() if k != "optimizer_class"}
        groups, optimizer = optimizer_state(self.policy.optimizer)
        states = self._random_states
        if states is None:
            rows = [] if self.env is None else self.env.get_attr("np_random")
            states = distributed.gather_objects(random_state(rows))
        data = {
            "arguments": arguments,
            "policy_kwargs": {**kwargs, "config": self.policy.config.to_dict()},
            "observation_length": self.observation_space.shape[0],  # type: ignore[index]
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "optimizer_groups": groups,
            "prompt_generator": self._prompt_generator.bit_generator.state,
            "random_state": states[0],
            "other_ranks": states[1:],
        }
        tensors = {
            "policy": distributed.whole(self.policy.state_dict()),
            "optimizer": distributed.whole(optimizer),
            "reference": distributed.whole(self.reference.state_dict()),
            "baseline": {} if self._ema is None else {"ema": self._ema},
        }
        if distributed.rank() == 0:
            write(path, data, tensors)
        distributed.wait()

    @classmethod
    def load(
        cls,
        path: Target,
        env: GymEnv | VectorEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        policy_class: type[GPT2Policy] = GPT2Policy,
        **arguments: Any,
    ) -> REINFORCE:
        """Loads a checkpoint of `save`; no pickled code is run.

        `learn(..., reset_num_timesteps=False)` then goes on as if the run had not been interrupted.

        Args:
            path: the file, with or without `.zip`, or a binary stream.
            env: the environment to go on with; None: for `predict` alone.
            device: where to put the model.
            custom_objects, print_system_info, force_reset: SB3's; the first must be empty, the others
                change nothing.
            policy_class: the class of the policy.
            **arguments: replace the constructor's arguments that the checkpoint holds.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or made for another vocabulary or observation.
        """
        if custom_objects:
            raise ValueError("custom_objects is not supported: pass arguments by their names")
        data, tensors = read(path)
        if unknown := sorted(
            set(arguments) - set(cls.ARGUMENTS) - {"parallel", "tensorboard_log", "verbose"}
        ):
            raise ValueError(f"load got {unknown}: it can replace {', '.join(cls.ARGUMENTS)}")
        merged = {**data["arguments"], **arguments}
        if merged["learning_rate"] is None:
            raise ValueError(
                "the checkpoint's learning_rate was a function, which isn't stored: pass it again,"
                " REINFORCE.load(..., learning_rate=...)"
            )
        model: Any = cls(
            policy_class,
            env,  # type: ignore[arg-type]
            device=device,
            policy_kwargs=data["policy_kwargs"],
            _init_setup_model=False,  # type: ignore[call-arg]
            **merged,
        )
        length, size = data["observation_length"], data["policy_kwargs"]["config"]["vocab_size"]
        if env is None:
            model.observation_space = spaces.Box(0, size, (length,), np.int64)
            model.action_space = spaces.Discrete(size)
            model.n_envs = 1
        else:
            model._check_vocabulary(GPT2Config.from_dict(data["policy_kwargs"]["config"]))
            if model.observation_space.shape != (length,):
                raise ValueError(
                    f"the checkpoint's observations hold {length} tokens, env's"
                    f" {model.observation_space.shape[0]}: use the prompts and max_tokens it was"
                    " trained with"
                )
        model._setup_model()
        model._freeze_reference()
        for name, value in data["counters"].items():
            setattr(model, name, value)
        model._ema = tensors["baseline"].get("ema")
        model._prompt_generator.bit_generator.state = data["prompt_generator"]
        model._random_states = [data["random_state"], *data.get("other_ranks", [])]
        model._spread()
        model._load_weights(data, tensors)
        distributed.load_state(model.reference, tensors["reference"])
        return model

    def set_parameters(
        self,
        load_path_or_dict: Target | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Loads weights and optimiser from a checkpoint of `save` or from `get_parameters`' dict."""
        if isinstance(load_path_or_dict, dict):
            return super().set_parameters(load_path_or_dict, exact_match, device)
        return self._load_weights(*read(load_path_or_dict))

    def _load_weights(self, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        theirs, ours = data["policy_kwargs"]["config"], self.policy.config.to_dict()
        theirs = GPT2Config.from_dict(theirs).to_dict()
        if differences := [name for name in ours if ours[name] != theirs.get(name)]:
            text = ", ".join(
                f"{n}" if n == "token_ids" else f"{n} {theirs.get(n)} instead of {ours[n]}"
                for n in differences
            )
            raise ValueError(f"the checkpoint is of another GPT-2: it has another {text}")
        distributed.load_state(self.policy, tensors["policy"])
        optimizer = self.policy.optimizer
        state = optimizer_state_dict(data["optimizer_groups"], tensors["optimizer"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, values in state["state"].items():
            for name, value in values.items():
                values[name] = distributed.as_part(value, parameters[index])
        optimizer.load_state_dict(state)

    def _restore_random_state(self) -> None:
        """Puts every generator where the checkpoint found it, once."""
        if self._random_states is None or self.env is None:
            return
        states, self._random_states = self._random_states, None
        if len(states) == distributed.world_size():
            set_random_state(states[distributed.rank()])
        else:
            self.logger.warn(
                f"the checkpoint is of {len(states)} processes, this run of"
                f" {distributed.world_size()}: tokens are drawn with other random numbers, and the run"
                " is not the uninterrupted one"
            )
            if self.seed is not None:
                distributed.seed_draws(self.seed, self._n_updates)
        saved = [generator for state in states for generator in state["generators"]]
        rows = self.env.get_attr("np_random")
        B = len(rows) * distributed.world_size()
        if len(saved) != B:
            self.logger.warn(
                f"the checkpoint has {len(saved)} rows, env {B}: its rows draw their prompts anew, and"
                " the run is not the uninterrupted one"
            )
            return
        own = saved[distributed.shard(B)]
        for row, (generator, state) in enumerate(zip(rows, own, strict=True)):
            generator.bit_generator.state = state
            # Rows in other processes answer with copies.
            if self.env.get_attr("np_random", [row])[0].bit_generator.state != state:
                self.env.set_attr("np_random", generator, [row])
