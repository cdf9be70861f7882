"""Blocks: the few rows of logits that a loss head works on at a time, and the one step that it takes with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
class Layout:
    """How the raw output of the heads becomes logits.

    Args:
        scales: what follows the product, of the student's head and of the teacher's.
        vocab_size: V, the first columns, those with a token.
    """

    scales: tuple[ScaleAndCap, ...]
    vocab_size: int


def evaluate(
    kernel: Kernel,
    layout: Layout,
    raw: Sequence[Tensor],
    rows: slice,
    given: Mapping[str, Any],
    into: Tensor | None = None,
) -> dict[str, Tensor]:
    """Let the kernel see a block, and return its scores, [n] each.

    Args:
        kernel: what is computed.
        layout: of the heads.
        raw: [n, R] raw output of the student's head, and of the teacher's where there is one.
        rows: where these rows stand among the N.
        given: [n, ...] by name, for the kernel.
        into: [n, R], where the gradient in the student's raw output is written, in its first V columns; `raw[0]` itself
            is allowed. None where no gradient is wanted.

    Example:
        >>> import torch
        >>> layout, raw = Layout((ScaleAndCap(2.0),), 2), torch.tensor([[1.0, 3.0, 0.0]])
        >>> def kernel(block):
        ...     return {"sum": block.student.sum(1)}, torch.ones_like(block.student)
        >>> evaluate(kernel, layout, [raw], slice(1), {}, raw)
        {'sum': tensor([8.])}
        >>> raw
        tensor([[2., 2., 0.]])
    """
    vocab_size = layout.vocab_size
    logits = [scale(one) for scale, one in zip(layout.scales, raw, strict=False)]
    student = logits[0][:, :vocab_size]
    teacher = logits[1][:, :vocab_size] if len(logits) > 1 else None
    scores, gradient = kernel(Block(student, teacher, logits[0][:, vocab_size:], rows, given))
    if into is not None:
        target = into[:, :vocab_size]
        target.zero_() if gradient is None else target.copy_(layout.scales[0].backward(gradient, student))
    return scores
