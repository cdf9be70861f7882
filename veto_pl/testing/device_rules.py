"""What CUDA refuses, and what it makes the host wait for, told from an operation and its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from veto_pl.testing.pretended_device import on_device

COPIES = ("copy_", "_to_copy", "_foreach_copy_")
INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot")
"""cuBLAS has none of integers."""
_WAITS = {
    "_local_scalar_dense": "item",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique": "unique",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
}
"""The size or the value of the result is only known on the device."""
_NONDETERMINISTIC = ("kthvalue", "median", "histc", "put_")
"""As well as `cumsum` of floats and weighted `bincount`. CUDA has no deterministic kernel for these."""
_locked: dict[int, StorageWeakRef] = {}
"""Memory of the host that is locked, so that the device can fetch it by itself, by its address."""


def lock(tensor: Tensor) -> None:
    """Lock the memory of a tensor of the host, for as long as it lives."""
    for address in [address for address, memory in _locked.items() if memory.expired()]:  # type: ignore[no-untyped-call]
        del _locked[address]
    memory = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    _locked[memory.cdata] = memory


def is_locked(tensor: Tensor) -> bool:
    """Return whether the memory of a tensor of the host is locked, whichever tensors look at it."""
    return tensor.untyped_storage()._cdata in _locked


def refuse(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise what CUDA raises for these arguments, of which at least one is on the device.

    Raises:
        RuntimeError: tensors on both sides, a generator of the host, or no deterministic kernel.
        NotImplementedError: a product of integers.
    """
    name = func._opname
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if name not in COPIES and any(map(on_device, tensors)):
        _refuse_two_devices(func, args, tensors)
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Generator) and not on_device(leaf.device):
            raise RuntimeError(f"Expected a device's generator but found one of the {leaf.device.type} ({name}).")
    if name in PRODUCTS and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
        raise NotImplementedError(f'"{name}" is not implemented for {tensors[0].dtype} on a device.')
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        _refuse_nondeterminism(name, tensors)


def _refuse_two_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise for tensors on both sides, but where a number of the host or an index of the host is allowed."""
    name = func._opname
    host = [tensor for tensor in tensors if not on_device(tensor)]
    if name in INDEXING and on_device(args[0]):
        host = [tensor for tensor in tree_leaves(args[2:]) if isinstance(tensor, Tensor) and not on_device(tensor)]
    numbers = torch.Tag.pointwise in func.tags or name in INDEXING or name.startswith(("fill", "masked_fill"))
    into_host = func._schema.is_mutable and not on_device(tensors[0])
    if into_host or [tensor for tensor in host if tensor.dim() > 0 or not numbers]:
        shapes = [f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices: {name} of "
            f"{', '.join(shapes)}."
        )


def _refuse_nondeterminism(name: str, tensors: Sequence[Tensor]) -> None:
    weighted = name == "bincount" and len(tensors) > 1
    if name in _NONDETERMINISTIC or weighted or (name in ("cumsum", "cumsum_") and tensors[0].is_floating_point()):
        raise RuntimeError(
            f"{name} does not have a deterministic implementation on a device, but you set "
            "'torch.use_deterministic_algorithms(True)'."
        )


def waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a reason for each time that CUDA lets the host wait in this operation."""
    name = func._opname
    if name in COPIES:
        yield from _waits_of_copy(name, args, kwargs)
    elif name in INDEXING:
        yield from _waits_of_index(name, args)
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        yield "repeat_interleave"
    elif name in _WAITS:
        yield _WAITS[name]


def _waits_of_copy(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a wait unless the memory is pinned and nobody asked to wait, or nothing crosses."""
    free = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
    if name == "_to_copy":
        if kwargs.get("device") is not None and not on_device(kwargs["device"]) and not free:
            yield "copy to the host"
        return
    targets, sources = (value if isinstance(value, list | tuple) else [value] for value in args[:2])
    for target, source in zip(targets, sources, strict=True):
        if on_device(target) != on_device(source):
            host, way = (source, "device") if on_device(target) else (target, "host")
            if not (free and is_locked(host)):
                yield f"copy to the {way}"


def _waits_of_index(name: str, args: Sequence[Any]) -> Iterator[str]:
    """Yield a wait for each mask, whose Trues are counted, and for each index that comes from the host."""
    filled = "put" in name and args[2].numel() == 1  # such a mask is filled, and nobody counts
    for index in args[1]:
        if index is not None and not on_device(index):
            yield "copy to the device"
        if index is not None and index.dtype in (torch.bool, torch.uint8) and not filled:
            yield "index by a mask"
