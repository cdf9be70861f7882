"""Whether the host has to look at values of the device: a sequence of kernels that is recorded cannot let it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
_BENEATH = ("/torch/", "/host_reads.py")
"""Files that are never named as the place of a read."""


class HostReadError(RuntimeError):
    """An operation whose kernels, or whose result's size, the host does not know before the device has computed."""


@contextmanager
def refused_host_reads() -> Iterator[None]:
    """Raise `HostReadError` in this block where the host would look at values of a device, whatever device there is.

    That is by a number (`item`, a branch), by a size (`nonzero`, an index by a mask), or by a copy to the host or from
    it, such as a tensor of Python's numbers.
    """
    with _Refusal():  # type: ignore[no-untyped-call]
        yield


class _Refusal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reason := _read(func, args, kwargs or {}):
            raise HostReadError(f"{reason} in {_place()}")
        return func(*args, **(kwargs or {}))


def _read(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Return what the host would read, or an empty string."""
    name = func._opname
    if torch.Tag.data_dependent_output in func.tags:
        return "the host looks at a value"
    if name in _INDEXING:
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        filled = "put" in name and args[2].numel() == 1  # such a mask is filled, and nobody counts
        return "the host counts the rows of a mask" if by_mask and not filled else ""
    if torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
        return "the host waits for a size"
    if name == "lift_fresh":
        return "numbers of the host become a tensor"
    return "a tensor crosses between host and device" if _crosses(name, args, kwargs) else ""


def _crosses(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if name == "_to_copy":
        target = kwargs.get("device")
        return target is not None and torch.device(target).type != args[0].device.type
    return name == "copy_" and args[0].device.type != args[1].device.type


def _place() -> str:
    """Return file and line of the innermost frame that is not torch's."""
    frames = [frame for frame in traceback.extract_stack() if not any(part in frame.filename for part in _BENEATH)]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "an unknown place"
