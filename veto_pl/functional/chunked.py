r"""The memory-exact loss head: losses over a vocabulary, and their gradients, without a tensor of tokens x vocabulary.

A loss over N tokens needs four matrix products of N x V x D: the logits of student and teacher, and the gradients of
the student's hidden states and head. `RowStream` does these four and nothing more of that size. For a chunk of rows it
forms both logits, turns the student's into their gradient in place, and adds that gradient's two products to the sums.
Backward only scales. Peak memory is the gradients' own plus two chunks of logits, whatever N is.

Between the products, the chunk is worked through in blocks that fit the processor's cache, which makes the elementwise
part of a loss cheap. Gradients are exact: nothing is sampled, truncated or recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veto_pl.functional.differentiation import closed_form
from veto_pl.functional.gradients import Gradients
from veto_pl.functional.heads import Head, LinearHead, full_precision
from veto_pl.functional.stat import Stat

BLOCK_ELEMENTS = 2**18
"""Logits that are worked on at a time on a CPU: a megabyte of float32, about one core's second-level cache."""


@dataclass(frozen=True)
class Block:
    """A few rows of logits, scaled and soft-capped as the head does it.

    Args:
        student: [n, V] logits of the student, float32 at least; not to be changed.
        teacher: [n, V] logits of the teacher, or None.
        padding: [n, R - V] logits of the student's head rows that belong to no token.
        rows: where these rows stand among the N.
    """

    student: Tensor
    teacher: Tensor | None
    padding: Tensor
    rows: slice


Kernel = Callable[[Block], tuple[dict[str, Tensor], Tensor | None]]
"""Maps a block to named scores, each [n], and the [n, V] gradient of the loss with respect to the student's logits."""


class RowStream:
    """Takes the hidden states of N tokens through the heads, a chunk of rows at a time.

    Args:
        hidden: [N, D] hidden states of the student.
        head: the student's head.
        teacher_hidden: [N, Dt] hidden states of the teacher, or None.
        teacher_head: the teacher's head.
        chunk_rows: rows whose logits are held at a time; at least 1.

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
        chunk_rows: int = 256,
    ) -> None:
        if chunk_rows < 1:
            raise ValueError(f"`chunk_rows` must be at least 1, got {chunk_rows}.")
        self.hidden, self.head, self.chunk_rows = hidden, head, chunk_rows
        self._sides = [_Side(hidden, head, chunk_rows, trained=True)]
        if teacher_hidden is not None and teacher_head is not None:
            if len(teacher_hidden) != len(hidden) or teacher_head.vocab_size != head.vocab_size:
                raise ValueError(
                    f"Student and teacher must have the same rows and vocabulary, got {len(hidden)} and "
                    f"{len(teacher_hidden)} rows, {head.vocab_size} and {teacher_head.vocab_size} ids."
                )
            self._sides.append(_Side(teacher_hidden, teacher_head, chunk_rows, trained=False))

    def scores(self, kernel: Kernel) -> dict[str, Tensor]:
        """Return the kernel's scores, [N] each, without gradients.

        The chunk's graph is kept where gradients are enabled, so that `gradients` may follow on the same stream.
        """
        differentiable = torch.is_grad_enabled()
        with torch.no_grad():
            return self._run(kernel, None, differentiable=differentiable)

    @torch.no_grad()
    def gradients(self, kernel: Kernel, *, with_teacher: bool = True) -> tuple[dict[str, Tensor], Gradients]:
        """Return the kernel's scores, and its loss's gradients with respect to hidden states and head."""
        gradients = Gradients.empty(self.hidden, self.head)
        return self._run(kernel, gradients, with_teacher=with_teacher, differentiable=True), gradients

    def _run(
        self, kernel: Kernel, gradients: Gradients | None, *, differentiable: bool, with_teacher: bool = True
    ) -> dict[str, Tensor]:
        sides = self._sides if with_teacher else self._sides[:1]
        scores: dict[str, Tensor] = {}
        # With N = 0 the kernel still sees one empty block, so that its scores have names.
        for start in range(0, max(len(self.hidden), 1), self.chunk_rows):
            raw = [side.logits(start, differentiable and side is sides[0]) for side in sides]
            block = self._block_rows(raw[0])
            for first in range(0, max(len(raw[0]), 1), block):
                rows = slice(first, first + block)
                self._store(scores, self._block(kernel, raw, start, rows, gradients is not None), start + first)
            if gradients is not None and len(raw[0]):
                sides[0].buffered = None  # the logits in the buffer have become their gradient
                gradients.add(sides[0].head, raw[0][:, : self.head.vocab_size], sides[0].rows(start), start)
        return scores

    def _store(self, scores: dict[str, Tensor], part: dict[str, Tensor], place: int) -> None:
        """Write a block's scores into whole [N] tensors.

        A list of small tensors would do, but those that outlive their block lie in the holes of freed large ones and
        fragment the heap.
        """
        if scores and part.keys() != scores.keys():
            raise ValueError(f"Every block must have the same scores, got {sorted(part)} after {sorted(scores)}.")
        for name, value in part.items():
            whole = scores.setdefault(name, value.new_empty(len(self.hidden)))
            whole[place : place + len(value)] = value

    def _block(
        self, kernel: Kernel, raw: Sequence[Tensor], start: int, rows: slice, differentiate: bool
    ) -> dict[str, Tensor]:
        vocab_size = self.head.vocab_size
        logits = [side.head.scale_and_cap(logits[rows]) for side, logits in zip(self._sides, raw, strict=False)]
        student = logits[0][:, :vocab_size]
        teacher = logits[1][:, :vocab_size] if len(logits) > 1 else None
        place = slice(start + rows.start, start + rows.start + len(student))
        with full_precision(student.device):
            scores, gradient = kernel(Block(student, teacher, logits[0][:, vocab_size:], place))
        if differentiate:
            target = raw[0][rows, :vocab_size]
            target.zero_() if gradient is None else target.copy_(self.head.scale_and_cap.backward(gradient, student))
        return scores

    def _block_rows(self, logits: Tensor) -> int:
        """Return the rows per block. An accelerator has no cache to fit: there a block is the chunk."""
        if logits.device.type != "cpu":
            return max(len(logits), 1)
        return max(1, BLOCK_ELEMENTS // logits.shape[1])


class _Side:
    """One model's hidden states and head, and the logits of one chunk of them."""

    def __init__(self, hidden: Tensor, head: Head, chunk_rows: int, *, trained: bool) -> None:
        dtype = _compute_dtype(hidden)
        if dtype == torch.float16 and trained and isinstance(head, LinearHead):
            # Most of a gradient over a vocabulary would underflow before any loss scale could reach it.
            dtype = torch.float32
        self.hidden = hidden.detach().to(dtype)
        self.head = head.cast(self.hidden.dtype)
        self.chunk_rows = chunk_rows
        self.buffered: int | None = None  # the first row of the chunk whose logits `_logits` holds
        self._logits: Tensor | None = None

    def rows(self, start: int) -> Tensor:
        return self.hidden[start : start + self.chunk_rows]

    def logits(self, start: int, differentiable: bool) -> Tensor:
        """Return the [n, R] logits of the chunk that begins at row `start`.

        A chunk whose logits are still in the buffer, because it is the only one, is not formed again.
        """
        if self.buffered != start or self._logits is None:
            rows = self.rows(start)
            out = None if self._logits is None else self._logits[: len(rows)]
            with torch.set_grad_enabled(differentiable):
                logits = self.head.forward(rows, out)
            if logits is not out:
                self._logits = logits
            self.buffered = start
            return logits
        return self._logits[: len(self.rows(start))]


def linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor,
    teacher_head: Tensor | Head,
    divergence: Callable[[Tensor, Tensor], Tensor],
    *,
    target: Callable[..., Tensor] | None = None,
    weights: Tensor | None = None,
    chunk_rows: int = 256,
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
        chunk_rows: rows whose logits are held at a time.
        step: passed on to `target` as its third argument where given; a `Target` with a schedule needs it.

    Returns:
        The weighted sum and the sum of the weights. `total.backward()` gives the gradients of `student_hidden` and
        `student_head`, as far as they require one; it can be called once.

    Raises:
        ValueError: `chunk_rows` is below 1, `weights` is not [N], or rows or vocabularies differ.

    Numerics: log-softmax and everything after it in float32 at least, also under autocast; the student's float16
    products are formed in float32. Gradients agree with the dense formula in float64 to about 1e-6 relative.

    Memory above the inputs: the two gradients and 2 x `chunk_rows` x V logits.

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
    value_and_gradient = closed_form(divergence)
    extra = () if step is None else (step,)

    def kernel(block: Block) -> tuple[dict[str, Tensor], Tensor]:
        assert block.teacher is not None, "this stream has a teacher"
        student_logp, teacher_logp = torch.log_softmax(block.student, -1), torch.log_softmax(block.teacher, -1)
        goal = teacher_logp if target is None else target(teacher_logp, student_logp, *extra)
        value, gradient = value_and_gradient(student_logp, goal)
        if weights is not None:
            weight = weights[block.rows].to(value.dtype)
            value, gradient = value * weight, gradient.mul_(weight[:, None])
        return {"value": value}, gradient

    stream = RowStream(student_hidden, head, teacher_hidden, other, chunk_rows=chunk_rows)
    if not torch.is_grad_enabled():
        total = stream.scores(kernel)["value"].sum()
    else:
        scores, gradients = stream.gradients(kernel)
        total = gradients.attach(scores["value"].sum(), student_hidden, head)
    return Stat(total, total.new_tensor(float(len(student_hidden))) if weights is None else weights.detach().sum())


def _as_head(head: Tensor | Head) -> Head:
    return LinearHead(head) if isinstance(head, Tensor) else head


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype that products are formed in: autocast's where it is on, else the tensor's own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
