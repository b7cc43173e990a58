"""Data-parallel training under torchrun. In a single process the exchanges return what they are given.

Each process, a rank, writes and reads its own rows of the batch, `shard(B)`. Texts and rewards are
gathered, so that every rank computes the same advantages, metrics and decisions from the whole batch.
DistributedDataParallel or FSDP2 averages the gradients. FSDP2's modules are imported where several
processes use them: they take longer to import than the rest of the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Parallel = Literal["ddp", "fsdp"]
TIMEOUT = timedelta(hours=2)  # of ranks that wait, as for an evaluation on the first one
Function = TypeVar("Function", bound=Callable[..., Any])


# ------------------------------------------------------------------------------------------ ranks


def join(device: str = "auto") -> str:
    """Meets the other processes that torchrun has started: NCCL between GPUs, gloo between CPUs.

    Args:
        device: `"cpu"`, `"cuda"` or `"auto"`.

    Returns:
        The device of this process. Among several, each gets the GPU of its number on its node.
    """
    if not dist.is_torchelastic_launched():
        return device
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return device if cuda else "cpu"


def leave() -> None:
    """Waits for the other processes and parts from them."""
    wait()
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Waits until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(rows: int) -> slice:
    """This rank's rows among those of the whole batch."""
    own = rows // world_size()
    return slice(rank() * own, (rank() + 1) * own)


# ---------------------------------------------------------------------------------------- exchange


def gather(x: Tensor) -> Tensor:
    """All ranks' rows, in their order: (b, …) to (B, …)."""
    if world_size() == 1:
        return x
    everyone = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(everyone, x.contiguous())
    return torch.cat(everyone)


def gather_parts(parts: Sequence[Tensor]) -> Tensor:
    """Joins this rank's micro-batches, then gathers the rows of all ranks: (B, …)."""
    return gather(torch.cat([*parts]))


def gather_objects(value: Any) -> list[Any]:
    """All ranks' values, which are pickled on the way."""
    everyone = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, value)
    return everyone


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over the ranks, without gradient."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def agree_on_seed(seed: int | None) -> int | None:
    """The same seed for all ranks: without one they would begin with different weights."""
    if world_size() == 1 or seed is not None:
        return seed
    return gather_objects(int(np.random.default_rng().integers(2**31)))[0]


def seed_draws(seed: int, updates: int) -> None:
    """Seeds this rank from (seed, updates, rank): ranks draw differently, and a resumed run anew."""
    sequence = np.random.SeedSequence((seed, updates, rank()))
    set_random_seed(int(sequence.generate_state(1)[0]), using_cuda=torch.cuda.is_available())


# ---------------------------------------------------------------------------------------- training


class _Forward(nn.Module):
    """A function of a model as the `forward` that DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.forward = model, function


def parallelize_ddp(model: nn.Module, function: Function) -> Function:
    """Wraps a function of `model` so that gradients through it are averaged over the ranks.

    Args:
        model: equal on all ranks. It stays as it is, its parameters' names included.
        function: a forward pass that returns tensors. DDP waits for the gradient of every returned
            tensor that has one.
    """
    if world_size() == 1:
        return function
    # Unless it looks for unused parameters, DDP rearranges its buckets after the first step. The
    # ranks' gradients would then be added in another order than in a run that has been resumed.
    return DistributedDataParallel(  # type: ignore[return-value]
        _Forward(model, function), gradient_as_bucket_view=True, find_unused_parameters=True
    )


def parallelize_fsdp(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    forward_passes: Iterable[Callable[..., Any]],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Gives each rank a part of every tensor of `model`, in place.

    Args:
        model: equal on all ranks.
        blocks: its layers, which are whole only while they are used.
        forward_passes: the methods of `model` that use its weights and are called from outside.
        optimizer: of the model's parameters, which it then holds in parts.
    """
    if world_size() == 1:
        return
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    names = {parameter: name for name, parameter in model.named_parameters()}
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    for method in forward_passes:
        register_fsdp_forward_method(model, method.__name__)
    for group in [] if optimizer is None else optimizer.param_groups:
        group["params"] = [model.get_parameter(names[old]) for old in group["params"]]


def no_sync(function: Callable[..., Any], more: bool) -> AbstractContextManager[None]:
    """While `more` micro-batches follow, DDP need not exchange gradients."""
    if more and isinstance(function, DistributedDataParallel):
        return function.no_sync()
    return nullcontext()


@contextmanager
def summon_full_params(root: nn.Module) -> Iterator[None]:
    """Keeps a whole model on every rank, so that each can use it by itself, without gradients."""
    if world_size() == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not root, recurse=False)
            part.reshard()


# ------------------------------------------------------------------------------------- checkpoints


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 may have split up; every rank must call this."""
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, on the first rank alone; on the CPU where they were split up."""
    gathered = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if rank() == 0:
            gathered[name] = full if full is tensor else full.cpu()
    return gathered


def shard_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A rank's part of a whole tensor: all of it, unless FSDP2 has split up its namesake `like`."""
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    # Every rank holds the whole tensor: with src_data_rank=None nothing is sent.
    own = tensor.to(like.device)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


def load_full_state_dict(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` with whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: shard_like(t, own.get(name)) for name, t in tensors.items()})
