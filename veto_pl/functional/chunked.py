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
from torch.autograd.function import once_differentiable

from veto_pl.functional.closed_forms import closed_form
from veto_pl.functional.heads import Head, LinearHead
from veto_pl.functional.stat import Stat

BLOCK_ELEMENTS = 2**18
"""Logits that are worked on at a time on a CPU: a megabyte of float32, about one core's second-level cache."""


@dataclass(frozen=True)
class Block:
    """A few rows of finished logits.

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
    """Hidden states of N tokens on their way through the heads, a chunk at a time.

    Args:
        hidden: [N, D] hidden states of the student.
        head: the student's head.
        teacher_hidden: [N, Dt] hidden states of the teacher, or None.
        teacher_head: the teacher's head.
        chunk_rows: rows whose logits are held at a time; at least 1.

    Raises:
        ValueError: `chunk_rows` is below 1, N differs, or the vocabularies differ.
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
        self._sides = [_Side(hidden, head, chunk_rows)]
        if teacher_hidden is not None and teacher_head is not None:
            if len(teacher_hidden) != len(hidden) or teacher_head.vocab_size != head.vocab_size:
                raise ValueError(
                    f"Student and teacher must have the same rows and vocabulary, got {len(hidden)} and "
                    f"{len(teacher_hidden)} rows, {head.vocab_size} and {teacher_head.vocab_size} ids."
                )
            self._sides.append(_Side(teacher_hidden, teacher_head, chunk_rows))

    @torch.no_grad()
    def scores(self, kernel: Kernel) -> dict[str, Tensor]:
        """The kernel's scores, each [N], without gradients."""
        return self._run(kernel, None)

    @torch.no_grad()
    def gradients(self, kernel: Kernel, *, with_teacher: bool = True) -> tuple[dict[str, Tensor], Gradients]:
        """The scores, and the gradients of the kernel's loss with respect to hidden states and head."""
        gradients = Gradients.empty(self.hidden, self.head)
        return self._run(kernel, gradients, with_teacher), gradients

    def _run(self, kernel: Kernel, gradients: Gradients | None, with_teacher: bool = True) -> dict[str, Tensor]:
        sides = self._sides if with_teacher else self._sides[:1]
        scores: dict[str, Tensor] = {}
        # With N = 0 the kernel still sees one empty block, so that its scores have names.
        for start in range(0, max(len(self.hidden), 1), self.chunk_rows):
            raw = [side.logits(start) for side in sides]
            block = self._block_rows(raw[0])
            for first in range(0, max(len(raw[0]), 1), block):
                rows = slice(first, first + block)
                self._store(scores, self._block(kernel, raw, start, rows, gradients is not None), start + first)
            if gradients is not None and len(raw[0]):
                self._sides[0].loaded = None
                gradients.add(self._sides[0].head, raw[0][:, : self.head.vocab_size], self._sides[0].rows(start), start)
        return scores

    def _store(self, scores: dict[str, Tensor], part: dict[str, Tensor], place: int) -> None:
        """Small tensors that outlived their block would lie in the holes of freed large ones and fragment the heap."""
        for name, value in part.items():
            whole = scores.setdefault(name, value.new_empty(len(self.hidden)))
            whole[place : place + len(value)] = value

    def _block(
        self, kernel: Kernel, raw: Sequence[Tensor], start: int, rows: slice, differentiate: bool
    ) -> dict[str, Tensor]:
        vocab_size = self.head.vocab_size
        finished = [side.head.finish(logits[rows]) for side, logits in zip(self._sides, raw, strict=False)]
        student = finished[0][:, :vocab_size]
        teacher = finished[1][:, :vocab_size] if len(finished) > 1 else None
        place = slice(start + rows.start, start + rows.start + len(student))
        scores, gradient = kernel(Block(student, teacher, finished[0][:, vocab_size:], place))
        if differentiate:
            target = raw[0][rows, :vocab_size]
            target.zero_() if gradient is None else target.copy_(self.head.finish.backward(gradient, student))
        return scores

    def _block_rows(self, logits: Tensor) -> int:
        """Rows per block. An accelerator has no cache to fit: there a block is the chunk."""
        if logits.device.type != "cpu":
            return max(len(logits), 1)
        return max(1, BLOCK_ELEMENTS // logits.shape[1])


class _Side:
    """One model's hidden states and head, and the logits of one chunk of them."""

    def __init__(self, hidden: Tensor, head: Head, chunk_rows: int) -> None:
        self.hidden = hidden.detach().to(_compute_dtype(hidden))
        self.head = head.cast(self.hidden.dtype)
        self.chunk_rows = chunk_rows
        self.loaded: int | None = None
        self._logits: Tensor | None = None

    def rows(self, start: int) -> Tensor:
        return self.hidden[start : start + self.chunk_rows]

    def logits(self, start: int) -> Tensor:
        """[n, R] of one chunk; a chunk that is still there, because it is the only one, is not formed again."""
        if self.loaded != start or self._logits is None:
            rows = self.rows(start)
            out = None if self._logits is None else self._logits[: len(rows)]
            logits = self.head.forward(rows, out)
            self._logits = logits if out is None else self._logits
            self.loaded = start
            return logits
        return self._logits[: len(self.rows(start))]


@dataclass(frozen=True)
class Gradients:
    """Sums of a loss's gradients.

    Args:
        hidden: [N, D], or None where the hidden states have no gradient.
        parameters: one for each parameter of the head, None where it is frozen.
    """

    hidden: Tensor | None
    parameters: tuple[Tensor | None, ...]

    @classmethod
    def empty(cls, hidden: Tensor, head: Head) -> Gradients:
        """Room for the tensors that require a gradient, which the first chunk fills; without any chunk, zeros."""

        def room(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
            if not tensor.requires_grad:
                return None
            return torch.empty_like(tensor, dtype=dtype) if len(hidden) else torch.zeros_like(tensor, dtype=dtype)

        sums = (room(p, torch.promote_types(p.dtype, torch.float32)) for p in head.parameters)
        return cls(room(hidden, hidden.dtype), tuple(sums))

    def add(self, head: Head, gradient: Tensor, hidden: Tensor, start: int) -> None:
        """Adds a chunk: `gradient` [n, V] of its logits, `hidden` [n, D] its rows, which begin at `start`."""
        of_hidden = head.backward(gradient, hidden, self.parameters, first=start == 0)
        if self.hidden is not None:
            self.hidden[start : start + len(hidden)] = of_hidden

    def attach(self, total: Tensor, hidden: Tensor, head: Head) -> Tensor:
        """The scalar `total` with a graph whose backward pass returns these gradients, scaled."""
        inputs = (hidden, *head.parameters)
        known = [
            None if gradient is None else gradient.to(tensor.dtype)
            for tensor, gradient in zip(inputs, (self.hidden, *self.parameters), strict=True)
        ]
        attached: Tensor = _Known.apply(total.detach(), known, *inputs)  # type: ignore[no-untyped-call]
        return attached


class _Known(torch.autograd.Function):
    """A scalar whose gradients were computed together with it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradients of the loss head were already used. Compute the loss again.")
        gradients, ctx.gradients = ctx.gradients, None
        if upstream.device.type == "cpu" and upstream == 1:  # an accelerator would have to wait for the answer
            return (None, None, *gradients)
        return (None, None, *(None if g is None else g.mul_(upstream) for g in gradients))


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
    r"""The divergence between two models' next-token distributions, straight from their hidden states.

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
        ValueError: `chunk_rows` is below 1, or rows or vocabularies differ.

    Numerics: log-softmax and everything after it in float32 at least, also under bfloat16. Gradients agree with the
    dense formula in float64 to about 1e-6 relative. They are formed in the forward pass, at the time that it takes.

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
    """The dtype that products are formed in: autocast's where it is on, else the tensor's own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
