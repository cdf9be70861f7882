"""Blocks: the few rows of logits that a loss head works on at a time, and the one step that it takes with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from veto_pl.functional.heads import ScaleAndCap


@dataclass(frozen=True)
class Block:
    """A few rows of logits, scaled and soft-capped as the head does it.

    Args:
        student: [n, V] logits of the student, float32 at least; not to be changed.
        teacher: [n, V] logits of the teacher, or None.
        padding: [n, R - V] logits of the student's head rows that belong to no token.
        rows: where these rows stand among the N.
        given: [n, ...] by name: what the kernel reads beside the logits, cut to these rows.
    """

    student: Tensor
    teacher: Tensor | None
    padding: Tensor
    rows: slice
    given: Mapping[str, Any] = field(default_factory=dict)


Kernel = Callable[[Block], tuple[dict[str, Tensor], Tensor | None]]
"""Maps a block to named scores, each [n], and the [n, V] gradient of the loss with respect to the student's logits."""


@dataclass(frozen=True)
class Raw:
    """What the heads gave for a few rows: the columns of tokens, and the student's others.

    Args:
        student: [n, V] of the student's head.
        teacher: [n, V] of the teacher's head, or None.
        padding: [n, R - V], what the student's head gave for rows of it that belong to no token.
        scales: what follows the product, of the student's head and of the teacher's.
    """

    student: Tensor
    teacher: Tensor | None
    padding: Tensor
    scales: tuple[ScaleAndCap, ...]


def evaluate(
    kernel: Kernel, raw: Raw, rows: slice, given: Mapping[str, Any], into: Tensor | None = None
) -> dict[str, Tensor]:
    """Let the kernel see a block, and return its scores, [n] each.

    Args:
        kernel: what is computed.
        raw: the heads' output.
        rows: where these rows stand among the N.
        given: [n, ...] by name, for the kernel.
        into: [n, V], where the gradient in the student's raw output is written; `raw.student` itself is allowed. None
            where no gradient is wanted.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 3.0]])
        >>> raw = Raw(logits, None, logits[:, :0], (ScaleAndCap(2.0),))
        >>> def kernel(block):
        ...     return {"sum": block.student.sum(1)}, torch.ones_like(block.student)
        >>> evaluate(kernel, raw, slice(1), {}, into=logits)
        {'sum': tensor([8.])}
        >>> logits
        tensor([[2., 2.]])
    """
    scale = raw.scales[0]
    student = scale(raw.student)
    teacher = None if raw.teacher is None else raw.scales[1](raw.teacher)
    scores, gradient = kernel(Block(student, teacher, scale(raw.padding), rows, given))
    if into is not None:
        into.zero_() if gradient is None else into.copy_(scale.backward(gradient, student))
    return scores
