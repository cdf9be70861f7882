"""Recording and replaying as CUDA graphs do it: operations on tensors that have to stay where they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from veto_pl.rollouts.recording import RECORDERS, Recorder
from veto_pl.testing.device_rules import waits
from veto_pl.testing.device_work import record_kernel, recording
from veto_pl.testing.pretended_device import NAME


class PretendedRecorder(Recorder):
    """Records operations without the Python around them, and replays them on the same tensors.

    As on CUDA, nothing of what exists already is changed while it is recorded; what would make the host wait is
    refused; a number of Python keeps its value in every replay; and tensors from outside of the recording are read and
    written where they were, whatever the variables that held them hold now.

    Args:
        device: where the tensors are; the CPU's own serve as well.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Take down the operations of the work, and return what does them again."""
        taken = _Recording()
        with recording(), taken:
            work()
        return taken.replay


def register_recorder() -> None:
    """Let decode loops on the pretended GPU record their steps."""
    RECORDERS[NAME] = PretendedRecorder


@dataclass
class _Operation:
    """An operation, its arguments, and the results that later operations read."""

    func: Any
    args: Any
    kwargs: Any
    results: list[Tensor] = field(default_factory=list)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []
        self.inside: dict[int, Tensor] = {}  # by storage: what was made while recording
        self.seen: dict[int, Tensor] = {}  # by identity: results, views of what was there before among them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for reason in waits(func, args, kwargs):
            if not reason.startswith("copy"):  # which may not be one, where all is on the CPU
                raise RuntimeError(f"operation not permitted when stream is capturing: {reason}")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func._schema.is_mutable and any(_storage(one) not in self.inside for one in _written(func, args, kwargs)):
            result = _untouched(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        known = {_storage(one) for one in given}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and _storage(leaf) not in known]
        self.inside |= {_storage(one): one for one in made}
        if not func._schema.is_mutable:
            self.seen |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        if made or func._schema.is_mutable:  # a view is the same in every replay
            kept_args, kept_kwargs = tree_map(self._held, (args, kwargs))
            self.operations.append(_Operation(func, kept_args, kept_kwargs, made))
        return result

    def _held(self, value: Any) -> Any:
        """Return an argument as it is kept: one from outside is not kept alive, as CUDA does not."""
        if not isinstance(value, Tensor) or _storage(value) in self.inside or id(value) in self.seen:
            return value
        return weakref.ref(value)

    def replay(self) -> None:
        """Do everything once more, as one kernel."""
        with recording():
            for operation in self.operations:
                args, kwargs = tree_map(_alive, (operation.args, operation.kwargs))
                found = tree_leaves(operation.func(*args, **kwargs))
                fresh = [leaf for leaf in found if isinstance(leaf, Tensor)]
                if operation.results:
                    for place, value in zip(operation.results, fresh, strict=True):
                        place.copy_(value)
        record_kernel("replay", [])


def _alive(value: Any) -> Any:
    if not isinstance(value, weakref.ref):
        return value
    tensor = value()
    if tensor is None:
        raise RuntimeError("A tensor that a recording reads or writes has been freed before it was replayed.")
    return tensor


def _storage(tensor: Tensor) -> int:
    return int(getattr(tensor, "held", tensor).untyped_storage()._cdata)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments that an operation writes."""
    by_name = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    found = (
        by_name.get(argument.name)
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return [leaf for leaf in tree_leaves(list(found)) if isinstance(leaf, Tensor)]


def _untouched(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operation returns that writes its arguments, without writing them."""
    written = _written(func, args, kwargs)
    return written[0] if len(func._schema.returns) == 1 else tuple(written[: len(func._schema.returns)])
