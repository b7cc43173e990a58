"""`save` and `load` of REINFORCE: a zip of JSON and safetensors. Loading runs no code from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from agents import checkpoint, distributed
from agents.advantages import Baseline
from agents.checkpoint import Target
from agents.gpt2 import GPT2
from agents.hyperparameters import HYPERPARAMETERS, LOAD_ARGUMENTS
from agents.policy import GPT2Policy, with_vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self


class Saving(BaseAlgorithm):
    """`save` and `load` of an algorithm that trains a `GPT2Policy` beside a frozen start model.

    Attributes:
        ARGUMENTS: the constructor's arguments that a checkpoint keeps: JSON-able, each an attribute
            of the same name. A subclass adds its own: `ARGUMENTS = (*REINFORCE.ARGUMENTS, "clip")`.
    """

    ARGUMENTS: ClassVar[tuple[str, ...]] = HYPERPARAMETERS
    policy: GPT2Policy
    reference: GPT2
    _baseline: Baseline
    _prompt_generator: np.random.Generator
    # A loaded checkpoint's random states, one for each rank, until `learn` restores them.
    _random_states: list[dict[str, Any]] | None
    # The `_position` from which the update that is being made began; None between updates.
    _update_began_at: dict[str, Any] | None

    def _token_ids(self) -> list[int] | None:
        """The GPT-2 token of each action; None without an environment."""
        return None if self.env is None else self.env.get_attr("vocabulary")[0].token_ids.tolist()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def _position(self) -> dict[str, Any]:
        """The run's counters and random states: a resumed run goes on from there."""
        drawing = self.env is not None and self.env.has_attr("np_random")
        rows = self.env.get_attr("np_random") if drawing else []  # type: ignore[union-attr]
        return {
            "counters": {name: getattr(self, name) for name in checkpoint.COUNTERS},
            "prompt_generator": self._prompt_generator.bit_generator.state,
            "random_state": checkpoint.random_state(rows),
        }

    @contextmanager
    def _one_update(self) -> Iterator[None]:
        """Within, `save` stores the position at the update's start: half an update cannot be resumed."""
        self._update_began_at = self._position()
        try:
            yield
        finally:
            self._update_began_at = None

    def save(self, path: Target, exclude: Any = None, include: Any = None) -> None:
        """Writes a checkpoint: JSON and safetensors in a zip, whole or not at all.

        It holds what shapes the rest of the run: weights of policy and start model, optimizer,
        counters, baseline, and the states of Python's, NumPy's, torch's and every row's generators.
        In the middle of an update, such as from a callback's `on_step`, counters and generators are
        written as they were when it began: a resumed run makes the whole update again.
        Of several ranks all must call this; the first writes, and it is done when it returns.

        Args:
            path: a file, `.zip` is added; or a binary stream, such as an open file.
            exclude, include: SB3's, not supported.

        Raises:
            ValueError: for `exclude` or `include`.
        """
        if exclude or include:
            raise ValueError("exclude and include are not supported: leave them out")
        arguments = {name: getattr(self, name) for name in self.ARGUMENTS}
        if callable(arguments["learning_rate"]):
            arguments["learning_rate"] = None  # code isn't stored: `load` asks for it
        kwargs = {k: v for k, v in self.policy_kwargs.items() if k != "optimizer_class"}
        if (optimizer_class := type(self.policy.optimizer)) is not torch.optim.AdamW:
            kwargs["optimizer_class"] = optimizer_class.__name__
        groups, optimizer = checkpoint.optimizer_state(self.policy.optimizer)
        position = self._update_began_at or self._position()
        states = self._random_states or distributed.gather_objects(position["random_state"])
        data = {
            "algorithm": type(self).__name__,
            "arguments": arguments,
            "policy_kwargs": {**kwargs, "config": self.policy.config.to_dict()},
            "observation_length": self.observation_space.shape[0],  # type: ignore[index]
            "counters": position["counters"],
            "optimizer_groups": groups,
            "prompt_generator": position["prompt_generator"],
            "random_state": states[0],
            "other_ranks": states[1:],
        }
        average = self._baseline.moving_average
        tensors = {
            "policy": distributed.full_state_dict(self.policy.state_dict()),
            "optimizer": distributed.full_state_dict(optimizer),
            "reference": distributed.full_state_dict(self.reference.state_dict()),
            "baseline": {} if average is None else {"ema": average},
        }
        if distributed.rank() == 0:
            checkpoint.write_archive(path, data, tensors)
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
    ) -> Self:
        """Loads a checkpoint of `save`; no pickled code is run.

        `learn(..., reset_num_timesteps=False)` then goes on as if the run had not been interrupted.

        Args:
            path: the file, with or without `.zip`, a run's folder, or a binary stream.
            env: the environment to go on with; None: for `predict` alone.
            device: where to put the model.
            custom_objects, print_system_info, force_reset: SB3's; the first must be empty, the others
                change nothing.
            policy_class: the class of the policy.
            **arguments: replace the constructor's arguments that the checkpoint holds. With a `seed`
                the random numbers begin anew. `optimizer_class` is needed for one that is not torch's.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or made for another vocabulary or observation.
        """
        if custom_objects:
            raise ValueError("custom_objects is not supported: pass arguments by their names")
        data, tensors = checkpoint.read_archive(path)
        checkpoint.check_algorithm(data, cls.__name__)
        checkpoint.check_contents(data, tensors, cls.ARGUMENTS)
        replaceable = (*cls.ARGUMENTS, *LOAD_ARGUMENTS)
        if unknown := sorted(arguments.keys() - set(replaceable)):
            raise ValueError(f"load got {unknown}: it can replace {', '.join(replaceable)}")
        optimizer_class = arguments.pop("optimizer_class", None)
        merged = {**data["arguments"], **arguments}
        if merged["learning_rate"] is None:
            raise ValueError(
                "the checkpoint's learning_rate was a function, which isn't stored: pass it again,"
                " REINFORCE.load(..., learning_rate=...)"
            )
        kwargs = data["policy_kwargs"]
        name = kwargs.get("optimizer_class", "AdamW")
        kwargs = kwargs | {"optimizer_class": checkpoint.optimizer_class(name, optimizer_class)}
        merged |= {"device": device, "policy_kwargs": kwargs}
        make: Any = cls
        model: Any = make(policy_class, env, _init_setup_model=False, **merged)
        model._settle_spaces(kwargs["config"], data["observation_length"])
        # The order matters. The policy is built first, with fresh weights. Its copy becomes the start
        # model, of the same shape. Counters come before `_parallelize`, which seeds each rank's draws
        # by the number of updates. Weights and optimizer come last, because FSDP splits up tensors
        # and each rank then loads its part. Random states wait for `learn`: building drew numbers.
        with checkpoint.checked("policy_kwargs"):
            model._setup_model()
        model._freeze_reference()
        for name, value in data["counters"].items():
            setattr(model, name, value)
        model._baseline.moving_average = tensors["baseline"].get("ema")
        if "seed" not in arguments:
            model._prompt_generator.bit_generator.state = data["prompt_generator"]
            model._random_states = [data["random_state"], *data.get("other_ranks", [])]
        model._parallelize()
        model._load_weights(data, tensors)
        checkpoint.check_tensors("reference", tensors["reference"], model.reference.state_dict())
        distributed.load_full_state_dict(model.reference, tensors["reference"])
        return model

    def _settle_spaces(self, config: dict[str, Any], length: int) -> None:
        """Takes the spaces of a checkpoint where there is no environment, or compares env's with them.

        Raises:
            ValueError: for an environment of another vocabulary or of observations of another length.
        """
        if self.env is None:
            self.observation_space = spaces.Box(0, config["vocab_size"], (length,), np.int64)
            self.action_space = spaces.Discrete(config["vocab_size"])
            self.n_envs = 1
            return
        with_vocabulary(config, self._token_ids())
        if self.observation_space.shape != (length,):
            raise ValueError(
                f"the checkpoint's observations hold {length} tokens, env's"
                f" {self.env.observation_space.shape[0]}: use the prompts and max_tokens it was"  # type: ignore[index]
                " trained with"
            )

    def set_parameters(
        self,
        load_path_or_dict: Target | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Loads weights and optimizer from a checkpoint of `save` or from `get_parameters`' dict."""
        if isinstance(load_path_or_dict, dict):
            return super().set_parameters(load_path_or_dict, exact_match, device)
        return self._load_weights(*checkpoint.read_archive(load_path_or_dict))

    def _load_weights(self, data: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        self.policy.check_same_shape(data["policy_kwargs"]["config"])
        checkpoint.check_tensors("policy", tensors["policy"], self.policy.state_dict())
        distributed.load_full_state_dict(self.policy, tensors["policy"])
        optimizer = self.policy.optimizer
        groups = data["optimizer_groups"]
        state = checkpoint.optimizer_state_dict(groups, tensors["optimizer"], optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, values in state["state"].items():
            for name, value in values.items():
                values[name] = distributed.shard_like(value, parameters[index])
        optimizer.load_state_dict(state)
