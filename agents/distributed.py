"""Many processes, as torchrun starts them, that train one model; without torchrun, one that does.

Each process, a rank, writes and reads its own rows of the batch: `shard(B)`. What is written is gathered:
each rank knows the whole batch's texts and rewards, and works out the same advantages, metrics and
decisions from them. Gradients are averaged by DistributedDataParallel or by FSDP2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from agents.gpt2 import GPT2
from agents.policy import GPT2Policy, Scores
from agents.rollout import Episodes

PARALLEL = ("ddp", "fsdp")
TIMEOUT = timedelta(hours=2)  # of ranks that wait, as for an evaluation on the first one
Score = Callable[[Tensor, Tensor], Scores]


# ------------------------------------------------------------------------------------ who there is


def join(device: str = "auto") -> str:
    """Meets the other processes that torchrun has started: NCCL between GPUs, gloo between CPUs.

    Args:
        device: `"cpu"`, `"cuda"` or `"auto"`.

    Returns:
        The device of this process: of several, each has the GPU of its number on its node.
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
    """Waits until all are here."""
    if dist.is_initialized():
        dist.barrier()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(rows: int) -> slice:
    """This rank's among the rows of the whole batch."""
    own = rows // world_size()
    return slice(rank() * own, (rank() + 1) * own)


# ------------------------------------------------------------------------------- what they exchange


def gather(x: Tensor) -> Tensor:
    """All ranks' rows, in their order: (b, …) to (B, …)."""
    if world_size() == 1:
        return x
    everyone = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(everyone, x.contiguous())
    return torch.cat(everyone)


def gather_objects(value: Any) -> list[Any]:
    """All ranks' values, which are pickled."""
    everyone = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, value)
    return everyone


def gather_episodes(own: Episodes) -> Episodes:
    """The whole batch."""
    infos = [info for infos in gather_objects(own.infos) for info in infos]
    return Episodes(gather(own.texts), gather(own.mask), gather(own.rewards), infos)


def total(x: Tensor) -> Tensor:
    """The sum over the ranks."""
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
    """Gives each rank its own random numbers; `updates`: another stretch of them for a resumed run."""
    sequence = np.random.SeedSequence((seed, updates, rank()))
    set_random_seed(int(sequence.generate_state(1)[0]), using_cuda=torch.cuda.is_available())


# ---------------------------------------------------------------------------------- how they train


class _Score(nn.Module):
    """The pass with gradients, as the `forward` that DistributedDataParallel asks for."""

    def __init__(self, policy: GPT2Policy, learn_values: bool) -> None:
        super().__init__()
        self.policy, self.learn_values = policy, learn_values

    def forward(self, texts: Tensor, mask: Tensor) -> Scores:
        scores = self.policy.score(texts, mask)
        # It would be waited for the gradient of a value head that is seen in the result.
        return scores if self.learn_values else scores._replace(values=scores.values.detach())


def spread(policy: GPT2Policy, reference: GPT2, parallel: str, learn_values: bool) -> Score:
    """Makes the ranks train one policy.

    Args:
        policy: equal on all ranks. Its parameters' names stay as they are.
        reference: the start model; FSDP2 splits it up too.
        parallel: `"ddp"`: each rank has the whole model; `"fsdp"`: a part of each tensor, and all of a
            layer only while it is used.
        learn_values: whether the value head gets a gradient.

    Returns:
        `policy.score` such that a gradient through it is, after `backward`, the mean over the ranks.
    """
    if world_size() == 1:
        return policy.score
    if parallel == "ddp":
        # Unless it looks for unused parameters, DDP rearranges its buckets after the first step. The
        # ranks' gradients would then be added in another order than in a run that has been resumed.
        return DistributedDataParallel(
            _Score(policy, learn_values), gradient_as_bucket_view=True, find_unused_parameters=True
        )
    names = {parameter: name for name, parameter in policy.named_parameters()}
    for module, gpt2 in ((policy, policy.gpt2), (reference, reference)):
        for block in gpt2.h:
            fully_shard(block)
        fully_shard(module)
    for name in ("score", "write"):
        register_fsdp_forward_method(policy, name)
    register_fsdp_forward_method(reference, "hidden")
    for group in policy.optimizer.param_groups:
        group["params"] = [policy.get_parameter(names[old]) for old in group["params"]]
    return policy.score


def accumulate(score: Score, more: bool) -> AbstractContextManager[None]:
    """While `more` micro-batches follow, DDP needn't exchange gradients."""
    return score.no_sync() if more and isinstance(score, DistributedDataParallel) else nullcontext()


@contextmanager
def unsharded(root: nn.Module) -> Iterator[None]:
    """Keeps a whole model on every rank, so that each can use it by itself, without gradients."""
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


# --------------------------------------------------------------------------- what checkpoints hold


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor of which FSDP2 may have given each rank a part; every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, on the CPU where they were in parts, and on the first rank alone."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole_tensor(tensor)
        if rank() == 0:
            gathered[name] = full if full is tensor else full.cpu()
    return gathered


def as_part(tensor: Tensor, of: Tensor | None) -> Tensor:
    """What a rank keeps of a whole tensor: all, unless FSDP2 has split up its namesake `of`."""
    if not isinstance(of, DTensor) or tensor.shape != of.shape:
        return tensor
    # Every rank holds the whole tensor: with src_data_rank=None nothing is sent.
    own = tensor.to(of.device)
    return distribute_tensor(own, of.device_mesh, of.placements, src_data_rank=None)


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` with whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: as_part(t, own.get(name)) for name, t in tensors.items()})
