"""Compiled blocks: whatever a kernel computes becomes a few passes over the logits, by `torch.compile`.

As it is written, a divergence with its target and metrics reads and writes the logits dozens of times. On a GPU that
costs several times the matrix products, because nothing of a chunk's size stays in a cache. The compiler fuses the
whole block, a third party's function included, and nobody has to write a kernel for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import cache, partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor

from veto_pl.functional.blocks import Kernel, Raw, evaluate

Compile = Literal["auto"] | bool
"""Whether blocks are compiled; `auto` compiles them on CUDA devices, where they are bound by memory."""

OPTIONS: dict[str, Any] = dict.fromkeys(
    ("realize_reads_threshold", "realize_opcount_threshold", "realize_acc_reads_threshold"), 1000
)
"""The compiler computes again what a later pass needs, and does not store it: that is cheaper than 8 bytes."""

_uncompiled: set[Hashable] = set()
"""Kinds of kernels that could not be compiled; of each was warned once."""


def evaluator(compiled: Compile, device: torch.device) -> Callable[..., dict[str, Tensor]]:
    """Return `evaluate`, or its compiled form where that is asked for.

    Args:
        compiled: `auto`, or a decision.
        device: where the logits are.

    Example:
        >>> evaluator("auto", torch.device("cpu")) is evaluate
        True
    """
    wanted = device.type == "cuda" if compiled == "auto" else compiled
    return evaluate_compiled if wanted else evaluate


def evaluate_compiled(
    kernel: Kernel, raw: Raw, rows: slice, given: Mapping[str, Any], into: Tensor | None = None
) -> dict[str, Tensor]:
    """Do as `evaluate` does, compiled, for any number of rows; uncompiled with one warning where that is impossible.

    The first call of a kernel takes the seconds of its compilation. A single row is not worth any. A kernel may have a
    `name`, which is warned of; a `kind`: kernels of one kind differ in numbers only, such as a temperature; and a
    method `with_tensors`, which makes of it one whose numbers are tensors. Where that fails, it itself may be compiled.
    """
    name = getattr(kernel, "name", None) or named(kernel)
    kind = getattr(kernel, "kind", name)
    if len(raw.student) < 2 or (kind, False) in _uncompiled:
        return evaluate(kernel, raw, rows, given, into)
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    raw = replace(raw, padding=raw.padding.clone())  # the few columns beside those that are overwritten
    for tensor in (raw.student, raw.teacher, raw.padding, *given.values(), into):
        if isinstance(tensor, Tensor):
            maybe_mark_dynamic(tensor, 0)
    reason, refused = "", []
    for form, tensors in ((as_compiled(kernel, raw.student), True), (kernel, False)):
        if (form is kernel and tensors) or (kind, tensors) in _uncompiled:
            continue
        try:
            return _compiled((kind, tensors))(form, raw, rows, given, into)
        except FailOnRecompileLimitHit:
            reason = "it was compiled for too many different numbers, of those that the compiler takes for constants"
        except TorchDynamoException as error:
            reason = _reason(error)
        # Nothing of the compiled kernel has run yet, so the block is as it was.
        refused.append((kind, tensors))
    scores = evaluate(kernel, raw, rows, given, into)  # an error of the kernel itself is raised here
    _uncompiled.update(refused)
    warnings.warn(
        f"The loss kernel `{name}` cannot be compiled and runs as it is written, which is several times slower on a "
        f"GPU: {reason}. Set `compile: false` if that is all right.",
        stacklevel=2,
    )
    return scores


def as_compiled(kernel: Kernel, logits: Tensor) -> Kernel:
    """Return a kernel as it is compiled first: with tensors in the place of numbers, where it can say which."""
    if not hasattr(kernel, "with_tensors"):
        return kernel
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # Not `torch.tensor`: the host would wait for the copy.
    made: Kernel = kernel.with_tensors(lambda value: torch.full((), value, dtype=dtype, device=logits.device))
    return made


def named(function: Callable[..., Any]) -> str:
    """Return what a function is called, or what the function inside of a partial one, or its class.

    Example:
        >>> named(partial(evaluate, into=None)), named(torch.nn.ReLU())
        ('evaluate', 'ReLU')
    """
    inner = function.func if isinstance(function, partial) else function
    return getattr(inner, "__qualname__", type(inner).__name__)


@cache
def _compiled(kind: Hashable) -> Callable[..., dict[str, Tensor]]:
    """Compile `evaluate` for kernels of one kind.

    The compiler counts variants for each piece of code, and gives up on one with many, or with a kernel that it cannot
    follow. So each kind has a copy of the code.
    """
    copy = FunctionType(evaluate.__code__.replace(), evaluate.__globals__)
    copy.__defaults__ = evaluate.__defaults__
    compiled: Callable[..., dict[str, Tensor]] = torch.compile(copy, fullgraph=True, options=OPTIONS)
    return compiled


def _reason(error: Exception) -> str:
    """Return what the compiler says in its first line, and the last line of the kernel's code that it names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    places = [line for line in lines if line.startswith('File "')]
    return lines[0].rstrip(".") + (f" ({places[-1]})" if places else "")
