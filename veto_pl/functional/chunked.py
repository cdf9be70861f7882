r"""The memory-exact loss head: losses over a vocabulary, and their gradients, without a tensor of tokens x vocabulary.

A loss over N tokens needs four matrix products of N x V x D: the logits of student and teacher, and the gradients of
the student's hidden states and head. `RowStream` does these four and nothing more of that size, by the loop of
`veto_pl.functional.panel_stream`, which knows several teachers too. Backward only scales. Peak memory is the gradients'
own plus two chunks of logits, whatever N is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veto_pl.functional.blocks import Block, Kernel
from veto_pl.functional.chunk_size import ChunkRows
from veto_pl.functional.compilation import Compile, named
from veto_pl.functional.compiled_numbers import Number, with_tensors
from veto_pl.functional.differentiation import closed_form
from veto_pl.functional.gradients import Gradients
from veto_pl.functional.heads import Head, LinearHead
from veto_pl.functional.panel_stream import PanelStream, Reader
from veto_pl.functional.stat import Stat

__all__ = ["Block", "Kernel", "RowStream", "linear_divergence"]


class RowStream:
    """Takes the hidden states of N tokens through the heads, a chunk of rows at a time.

    Args:
        hidden: [N, D] hidden states of the student.
        head: the student's head.
        teacher_hidden: [N, Dt] hidden states of the teacher, or None.
        teacher_head: the teacher's head.
        chunk_rows: rows whose logits are held at a time; at least 1. `auto` takes 256 on a CPU and what fits on an
            accelerator.
        compiled: whether kernels are; `auto` compiles them on CUDA devices. A compiled kernel has no side
            effects, and finds what it reads beside the logits in `block.given`.

    Raises:
        ValueError: `chunk_rows` is below 1, N differs, or the vocabularies differ.

    Example:
        The negative log-likelihood of token 0 in each row, two rows at a time:

        >>> def kernel(block):
        ...     logp = torch.log_softmax(block.student, -1)
        ...     gradient = logp.exp() - torch.tensor([1.0, 0.0, 0.0])
        ...     return {"nll": -logp[:, 0]}, gradient
        >>> hidden = torch.zeros(4, 2, requires_grad=True)
        >>> head = LinearHead(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        >>> scores, gradients = RowStream(hidden, head, chunk_rows=2).gradients(kernel)
        >>> scores["nll"]
        tensor([1.0986, 1.0986, 1.0986, 1.0986])
        >>> gradients.hidden[0]
        tensor([-0.6667,  0.3333])
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        teacher_hidden: Tensor | None = None,
        teacher_head: Head | None = None,
        *,
        chunk_rows: ChunkRows = "auto",
        compiled: Compile = False,
    ) -> None:
        reader = Reader(teacher_hidden, teacher_head)
        self._stream = PanelStream(hidden, head, [reader], chunk_rows=chunk_rows, compiled=compiled)
        self.hidden, self.head, self.chunk_rows = hidden, head, self._stream.chunk_rows

    def scores(self, kernel: Kernel, given: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Return the kernel's scores, [N] each, without gradients.

        What is `given` by name, [N, ...] each, the kernel finds in `block.given`, cut to the block's rows.
        """
        (scores,) = self._stream.scores(kernel, [given or {}])
        return scores

    def gradients(self, kernel: Kernel, given: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], Gradients]:
        """Return the kernel's scores, and its loss's gradients with respect to hidden states and head."""
        (scores,), gradients = self._stream.gradients(kernel, [given or {}])
        return scores, gradients


@dataclass(frozen=True)
class DivergenceKernel:
    """The kernel of a divergence to a target; a block may be given `weights`, [n].

    Args:
        divergence: maps (student_logp, target_logp) to [n].
        target: maps (teacher_logp, student_logp, *extra) to [n, V]; None for the teacher itself.
        extra: what else the target is called with.
    """

    divergence: Callable[[Tensor, Tensor], Tensor]
    target: Callable[..., Tensor] | None = None
    extra: tuple[Any, ...] = ()

    def __call__(self, block: Block) -> tuple[dict[str, Tensor], Tensor]:
        """Return the `value` [n], and the gradient [n, V]."""
        assert block.teacher is not None, "this stream has a teacher"
        student, teacher = torch.log_softmax(block.student, -1), torch.log_softmax(block.teacher, -1)
        goal = teacher if self.target is None else self.target(teacher, student, *self.extra)
        value, gradient = closed_form(self.divergence)(student, goal)
        if "weights" in block.given:
            weight = block.given["weights"].to(value.dtype)
            value, gradient = value * weight, gradient.mul_(weight[:, None])
        return {"value": value}, gradient

    def with_tensors(self, number: Number) -> DivergenceKernel:
        """Return the same kernel, which takes numbers for tensors."""
        step = self.extra[0] if self.extra else None
        divergence, target = (with_tensors(part, number, step) for part in (self.divergence, self.target))
        if divergence is self.divergence and target is self.target:
            return self
        return DivergenceKernel(divergence, target, self.extra)

    @property
    def name(self) -> str:
        """What a warning calls it."""
        return " to ".join(named(part) for part in (self.divergence, self.target) if part is not None)


def linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor,
    teacher_head: Tensor | Head,
    divergence: Callable[[Tensor, Tensor], Tensor],
    *,
    target: Callable[..., Tensor] | None = None,
    weights: Tensor | None = None,
    chunk_rows: ChunkRows = "auto",
    compiled: Compile = "auto",
    step: Any = None,
) -> Stat:
    r"""Compute the divergence between two models' next-token distributions straight from their hidden states.

    .. math:: \sum_i w_i\, D\big(\mathrm{softmax}(H_S W_S^\top)_i,\; Q_i\big), \qquad \sum_i w_i

    Args:
        student_hidden: [N, D].
        student_head: [V, D], or a head with bias, scale or soft-cap (`veto_pl.functional.heads`).
        teacher_hidden: [N, Dt]; no gradient reaches it.
        teacher_head: [V, Dt], or a head.
        divergence: maps (student_logp, target_logp), [n, V] each, to [n]: a function of
            `veto_pl.functional.divergences`, a `Divergence`, or any differentiable function of your own.
        target: maps (teacher_logp, student_logp) to [n, V] log-probabilities, for instance a `functools.partial` of
            `geometric_bridge`, or a `Target`; the teacher itself by default. It is held fixed.
        weights: [N], how much each row counts; 1 by default. Held fixed.
        chunk_rows: rows whose logits are held at a time; `auto` takes 256 on a CPU and what fits on an accelerator.
        compiled: whether divergence and target are; `auto` compiles them on CUDA devices. If the compiler fails, they
            run as they are written, with one warning.
        step: passed on to `target` as its third argument where given; a `Target` with a schedule needs it.

    Returns:
        The weighted sum and the sum of the weights. `total.backward()` gives the gradients of `student_hidden` and
        `student_head`, as far as they require one; it can be called once.

    Raises:
        ValueError: `chunk_rows` is below 1, `weights` is not [N], or rows or vocabularies differ.

    Numerics: log-softmax and everything after it in float32 at least, also under autocast; the student's float16
    products are formed in float32. Gradients agree with the dense formula in float64 to about 1e-6 relative.

    Memory above the inputs: the two gradients and 2 x `chunk_rows` x V logits; in bfloat16 on CUDA, where logits are
    float32, half as much again as one of these for their gradient.

    Example:
        >>> from veto_pl.functional.divergences import reverse_kl
        >>> hidden, head = torch.eye(3).requires_grad_(), torch.eye(3)
        >>> stat = linear_divergence(hidden, head, torch.zeros(3, 3), head, reverse_kl)
        >>> stat.mean().backward()
        >>> hidden.grad.sum(1).abs().max() < 1e-6
        tensor(True)

    References:
        docs/performance.md has the derivation and the measurements.
    """
    if weights is not None and weights.shape != student_hidden.shape[:1]:
        raise ValueError(f"`weights` must be [{len(student_hidden)}], one for each row, got {list(weights.shape)}.")
    head, other = _as_head(student_head), _as_head(teacher_head)
    kernel = DivergenceKernel(divergence, target, () if step is None else (step,))
    given = {} if weights is None else {"weights": weights}
    stream = RowStream(student_hidden, head, teacher_hidden, other, chunk_rows=chunk_rows, compiled=compiled)
    if not torch.is_grad_enabled():
        total = stream.scores(kernel, given)["value"].sum()
    else:
        scores, gradients = stream.gradients(kernel, given)
        total = gradients.attach(scores["value"].sum(), student_hidden, head)
    return Stat(total, total.new_tensor(float(len(student_hidden))) if weights is None else weights.detach().sum())


def _as_head(head: Tensor | Head) -> Head:
    return LinearHead(head) if isinstance(head, Tensor) else head
