"""What a device would have to do: its kernels, the bytes that they read and write, and where the host waits for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from torch import Tensor

_LIBRARIES = ("transformers", "lightning", "torchmetrics", "torch/optim", "torch/nn/utils", "veto_pl")
"""Whose code may be named as the place of a wait."""


@dataclass
class Work:
    """What was asked of the device while this was open.

    Args:
        kernels: how often each kernel was started, by the name of its operation. Views and empty tensors cost none;
            a copy counts as one.
        moved: bytes that the kernels of each name read and wrote.
        waits: how often the host waited for the device, by reason and place.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def without(self, other: Work) -> Work:
        """Return what was asked here and not there, for instance of two runs of which one is a unit longer."""
        parts = [(mine.copy(), theirs) for mine, theirs in zip(self._counters(), other._counters(), strict=True)]
        for mine, theirs in parts:
            mine.subtract(theirs)
        return Work(*(mine for mine, _ in parts))

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.kernels, self.moved, self.waits

    def table(self, most: int = 30) -> str:
        """Return the most frequent waits and kernels as text, for the message of a failed test."""
        waits = [f"{count:6} wait    {name}" for name, count in self.waits.most_common(most)]
        return "\n".join([*waits, *(f"{count:6} kernel  {name}" for name, count in self.kernels.most_common(most))])


_open: list[Work] = []
_recording = False


@contextmanager
def counted() -> Iterator[Work]:
    """Count what is asked of the device in this block; blocks may be nested, and each counts all."""
    work = Work()
    _open.append(work)
    try:
        yield work
    finally:
        _open.remove(work)


@contextmanager
def recording() -> Iterator[None]:
    """Count no kernels in this block, which are recorded and not started, and refuse what would make the host wait."""
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before


def record_kernel(name: str, tensors: Iterable[Tensor]) -> None:
    """Count one kernel that reads and writes these tensors."""
    if not _open or _recording:
        return
    moved = sum(map(_touched, tensors))
    for work in _open:
        work.kernels[name] += 1
        work.moved[name] += moved


def record_wait(reason: str) -> None:
    """Count that the host waits here until the device has done all that it was asked.

    Raises:
        RuntimeError: a recording is going on, as CUDA does.
    """
    if _recording:
        raise RuntimeError(f"operation not permitted when stream is capturing: {reason} at {_place()}")
    if not _open:
        return
    found = f"{reason} at {_place()}"
    for work in _open:
        work.waits[found] += 1


def _touched(tensor: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded is one number in the memory."""
    number = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= size if stride else min(size, 1)
    return number


def _place() -> str:
    """Return file and line of the innermost frame of a known library, tests of the device aside."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        for library in _LIBRARIES:
            _, found, inside = path.rpartition(f"/{library}/")
            if found and not inside.startswith("testing/"):
                return f"{library}/{inside}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"
