"""A pretended accelerator: tensors hold their values in main memory and claim to be on another device.

Like a GPU it refuses to mix devices. It counts whatever would make the host wait for a GPU: every value
read, every boolean index (its size is a value), and every copy between the devices that blocks.

The device is called "meta", the only one besides the CPU that autograd can differentiate on in every
build of torch. Nothing else of torch's meta device is used.
"""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
NAME = "meta"
COPIES = (aten._to_copy.default, aten.copy_.default)
# Operations that return as many entries as the values say, so that the host has to know them.
SIZED_BY_VALUES = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten.masked_scatter_backward.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)


class Shadow(torch.Tensor):
    """A tensor of the pretended device; `value` is where it is really."""

    value: torch.Tensor

    @staticmethod
    def __new__(cls, value):
        shadow = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=NAME,
        )
        shadow.value = value
        return shadow

    def data_ptr(self):
        return self.value.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"Shadow({self.value})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on the pretended device, outside of ShadowDevice")


class ShadowDevice(TorchDispatchMode):
    """While it is entered, tensors made on "meta" are real; `reads`, `uploads`: what was waited for.

    Attributes:
        reads: how often the host waited for a value, by operation.
        uploads: how often it waited for a copy to the device.
    """

    def __init__(self):
        super().__init__()
        self.reads, self.uploads = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        shadows = [x for x in tensors if isinstance(x, Shadow)]
        target = kwargs.get("device")
        here = bool(shadows) if target is None else torch.device(target).type == NAME
        if not shadows and not here:
            return func(*args, **kwargs)
        if func in COPIES:
            here = self._count_copy(func, args, kwargs)
        else:
            self._count(func, args)
            for x in tensors:
                if not isinstance(x, Shadow) and x.ndim and func not in INDEXING:
                    raise RuntimeError(f"{func} mixes devices: {[x.device.type for x in tensors]}")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        known = {id(x.value): x for x in shadows}  # what is written to in place stays itself
        result = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        if not here:
            return result
        return tree_map(lambda x: known[id(x)] if id(x) in known else _shadow(x), result)

    def _count_copy(self, func, args, kwargs):
        """Counts a copy that crosses from one device to the other; whether its result is here."""
        source = args[1] if func is aten.copy_.default else args[0]
        if func is aten.copy_.default:
            to = args[0].device.type
            blocking = not (len(args) > 2 and args[2])
        else:
            to = torch.device(kwargs.get("device") or source.device).type
            blocking = not kwargs.get("non_blocking")
        if isinstance(source, Shadow) and to != NAME:
            self.reads[str(func)] += 1  # a copy to the host is read at once, blocking or not
        elif not isinstance(source, Shadow) and to == NAME and source.ndim and blocking:
            self.uploads[str(func)] += 1
        return to == NAME

    def _count(self, func, args):
        if func in SIZED_BY_VALUES or func is aten._local_scalar_dense.default:
            self.reads[str(func)] += 1
        if func in INDEXING:
            indices = [x for x in args[1] if x is not None]
            fill = len(args) > 2 and not args[2].ndim  # x[mask] = 0 needs no sizes
            self.reads[str(func)] += sum(x.dtype == torch.bool and not fill for x in indices)
            self.uploads[str(func)] += sum(not isinstance(x, Shadow) for x in indices)

    @contextmanager
    def count(self):
        """The counts of a block alone, (reads, uploads), complete when it has ended."""
        before = self.reads.total(), self.uploads.total()
        counts = []
        yield counts
        counts += [self.reads.total() - before[0], self.uploads.total() - before[1]]


def _value(x):
    return x.value if isinstance(x, Shadow) else x


def _shadow(x):
    return Shadow(x) if isinstance(x, torch.Tensor) and not isinstance(x, Shadow) else x


def to_shadow(x):
    """A module, in place, or a tensor on the pretended device."""
    if not isinstance(x, nn.Module):
        return Shadow(x)
    for module in x.modules():
        for name, parameter in module._parameters.items():
            shadow = Shadow(parameter.detach().clone())
            module._parameters[name] = nn.Parameter(shadow, parameter.requires_grad)
    return x
