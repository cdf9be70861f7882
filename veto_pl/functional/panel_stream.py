"""The loop of the loss head: a student and any number of teachers go through their heads, a chunk of rows at a time.

For a chunk of rows the student's logits are formed once, and turned into their gradient, whose two products are added
to the sums. Beside them stand, for each teacher that speaks of rows of the chunk, the logits of those rows. So K
teachers cost K products of N x V x D, and the student its three, whatever the teachers say.

Between the products, the chunk is worked through in blocks that fit the processor's cache, which makes the elementwise
part of a loss cheap. Gradients are exact: nothing is sampled, truncated or recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veto_pl.functional.blocks import Kernel, Raw, evaluate
from veto_pl.functional.chunk_size import ChunkRows, chunk_size
from veto_pl.functional.compilation import Compile, evaluator
from veto_pl.functional.gradients import Gradients
from veto_pl.functional.heads import Head, full_precision
from veto_pl.functional.own_ends import Ends
from veto_pl.functional.sides import Side

BLOCK_ELEMENTS = 2**18
"""Logits that are worked on at a time on a CPU: a megabyte of float32, about one core's second-level cache."""

Scores = dict[str, Tensor]
Given = Mapping[str, Any]


@dataclass(frozen=True)
class Reader:
    """A teacher beside the student, and the student's rows that it speaks of.

    Args:
        hidden: [M, Dt] its hidden states; None where the kernel sees the student alone.
        head: its head, with `hidden`.
        places: [M] int64 on the host, ascending: the student's row that each of its rows stands for; None where each
            stands for its own.
        index: `places` on the student's device.
        ends: by which ids student and teacher end a text; None where by the same.
        written: [M] int64 on the device, the student's tokens, with `ends`.
    """

    hidden: Tensor | None = None
    head: Head | None = None
    places: Tensor | None = None
    index: Tensor | None = None
    ends: Ends | None = None
    written: Tensor | None = None


class PanelStream:
    """Takes the hidden states of N tokens through the heads, a chunk of rows at a time.

    The kernel sees the rows of one reader at a time, and what it returns for them is added up: the gradient in the
    student's logits is the sum over the readers. A single reader that speaks of all rows costs no copy.

    Args:
        hidden: [N, D] hidden states of the student.
        head: the student's head.
        readers: the teachers; at least one, which may be `Reader()`, the student alone.
        chunk_rows: rows whose logits are held at a time; at least 1. `auto` takes 256 on a CPU and what fits on an
            accelerator.
        compiled: whether kernels are; `auto` compiles them on CUDA devices. A compiled kernel has no side
            effects, and finds what it reads beside the logits in `block.given`.

    Raises:
        ValueError: `chunk_rows` is below 1, or a teacher has other rows or another vocabulary.

    Example:
        Two teachers, the second of which speaks of the last row only:

        >>> from veto_pl.functional.heads import LinearHead
        >>> def kernel(block):
        ...     gap = block.student - block.teacher
        ...     return {"gap": gap.square().sum(1)}, 2 * gap
        >>> hidden, head = torch.zeros(2, 2, requires_grad=True), LinearHead(torch.eye(2))
        >>> last = torch.tensor([1])
        >>> readers = [Reader(torch.ones(2, 2), head), Reader(torch.ones(1, 2), head, last, last)]
        >>> scores, gradients = PanelStream(hidden, head, readers).gradients(kernel, [{}, {}])
        >>> [part["gap"].tolist() for part in scores]
        [[2.0, 2.0], [2.0]]
        >>> gradients.hidden
        tensor([[-2., -2.],
                [-4., -4.]])
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        readers: Sequence[Reader],
        *,
        chunk_rows: ChunkRows = "auto",
        compiled: Compile = False,
    ) -> None:
        self.hidden, self.head = hidden, head
        self._evaluate = evaluator(compiled, hidden.device)
        self._student = Side(hidden, head, trained=True)
        self._seats = [_Seat(reader, len(hidden), head.vocab_size) for reader in readers]
        self.chunk_rows = chunk_size(chunk_rows, hidden.device, head.vocab_size, self._dtypes())

    def scores(self, kernel: Kernel, given: Sequence[Given]) -> list[Scores]:
        """Return the kernel's scores for the rows of each reader, [M] each, without gradients.

        What is `given` to a reader by name, [M, ...] each, the kernel finds in `block.given`, cut to the block's rows.

        The chunk's graph is kept where gradients are enabled, so that `gradients` may follow on the same stream.
        """
        differentiable = torch.is_grad_enabled()
        with torch.no_grad():
            return self._run(kernel, given, None, self._seats, differentiable=differentiable)

    @torch.no_grad()
    def gradients(self, kernel: Kernel, given: Sequence[Given]) -> tuple[list[Scores], Gradients]:
        """Return the kernel's scores, and its loss's gradients with respect to hidden states and head."""
        gradients = Gradients.empty(self.hidden, self.head)
        return self._run(kernel, given, gradients, self._seats, differentiable=True), gradients

    @torch.no_grad()
    def student_gradients(self, kernel: Kernel, given: Given) -> Gradients:
        """Return the gradients of a loss for which the student's rows are enough; no teacher is asked."""
        gradients, alone = Gradients.empty(self.hidden, self.head), _Seat(Reader(), len(self.hidden), 0)
        self._run(kernel, [given], gradients, [alone], differentiable=True)
        return gradients

    def _run(
        self,
        kernel: Kernel,
        given: Sequence[Given],
        gradients: Gradients | None,
        seats: Sequence[_Seat],
        *,
        differentiable: bool,
    ) -> list[Scores]:
        turns = [_Turn(kernel, seat, beside, {}) for seat, beside in zip(seats, given, strict=True)]
        apart = len(seats) > 1 or seats[0].places is not None
        # With N = 0 the kernel still sees one empty block, so that its scores have names.
        for start in range(0, max(len(self.hidden), 1), self.chunk_rows):
            chunk = slice(start, start + self.chunk_rows)
            logits = self._student.logits(chunk, differentiable)
            into = None if gradients is None else self._student.room_for_gradient(logits, apart=apart)
            if into is not None and apart:
                into.zero_()
            for turn in turns:
                (self._add_some_rows if apart else self._rows)(turn, logits, chunk, into)
            if gradients is not None and into is not None and len(into):
                gradients.add(self._student.head, into[:, : self.head.vocab_size], self._student.hidden[chunk], start)
        return [turn.scores for turn in turns]

    def _add_some_rows(self, turn: _Turn, logits: Tensor, chunk: slice, into: Tensor | None) -> None:
        """Let a reader see its rows of a chunk, on a copy of the student's logits, and add its gradient to `into`."""
        span = turn.seat.span(chunk, len(logits))
        if span.start == span.stop and turn.scores:  # it has been asked for the names of its scores
            return
        index = turn.seat.rows(span, chunk.start, len(logits))
        student = logits.clone() if index is None else logits[index]
        own = None if into is None else _like(student, into.dtype)
        self._rows(turn, student, span, own)
        if into is not None and own is not None:
            into, own = into[:, : self.head.vocab_size], own[:, : self.head.vocab_size]
            into.add_(own) if index is None else into.index_add_(0, index, own)

    def _rows(self, turn: _Turn, student: Tensor, span: slice, into: Tensor | None) -> None:
        """Let a reader see rows of logits, block by block, and write its scores, and its gradient into `into`."""
        logits, block = (student, turn.seat.logits(span)), self._block_rows(student)
        for first in range(0, max(len(student), 1), block):
            part = self._block(turn, logits, span.start, slice(first, first + block), into)
            turn.store(part, span.start + first)

    def _block(
        self, turn: _Turn, logits: tuple[Tensor, Tensor | None], start: int, rows: slice, into: Tensor | None
    ) -> Scores:
        tokens = (rows, slice(self.head.vocab_size))
        student, teacher = logits[0][tokens], None if logits[1] is None else logits[1][tokens]
        padding = logits[0][rows, self.head.vocab_size :]
        target = student if into is logits[0] else None if into is None else into[tokens]
        place = slice(start + rows.start, start + rows.start + len(student))
        teacher = turn.seat.renamed(teacher, place)
        here = {name: values[place] for name, values in turn.given.items()}
        raw = Raw(student, teacher, padding, (self._student.head.scale_and_cap, *turn.seat.scale))
        with full_precision(student.device):
            return self._evaluate(turn.kernel, raw, place, here, target)

    def _block_rows(self, logits: Tensor) -> int:
        """Return the rows per block. An accelerator has no cache to fit: there a block is the chunk."""
        if logits.device.type != "cpu":
            return max(len(logits), 1)
        fewest = 1 if self._evaluate is evaluate else 2  # a single row would not be compiled
        return max(fewest, BLOCK_ELEMENTS // logits.shape[1])

    def _dtypes(self) -> list[torch.dtype]:
        """Return the dtypes of what is held of a chunk: logits, and their gradient where it has a place of its own."""
        side = self._student
        student = side.head.logits_dtype(side.hidden)
        raw = [student, *(one.side.head.logits_dtype(one.side.hidden) for one in self._seats if one.side is not None)]
        of_gradient = side.head.gradient_dtype(student)
        if any(seat.places is not None for seat in self._seats) or len(self._seats) > 1:
            return [*raw, student, of_gradient]
        return raw if of_gradient == student else [*raw, of_gradient]


class _Seat:
    """A reader at work."""

    def __init__(self, reader: Reader, rows: int, vocab_size: int) -> None:
        self.places, self._index = reader.places, reader.index
        self._ends, self._written = reader.ends, reader.written
        self.side: Side | None = None
        self.count = rows if reader.places is None else len(reader.places)
        if reader.hidden is not None and reader.head is not None:
            if len(reader.hidden) != self.count or reader.head.vocab_size != vocab_size:
                raise ValueError(
                    f"Student and teacher must have the same rows and vocabulary, got {self.count} and "
                    f"{len(reader.hidden)} rows, {vocab_size} and {reader.head.vocab_size} ids."
                )
            self.side = Side(reader.hidden, reader.head, trained=False)
        self.scale = () if self.side is None else (self.side.head.scale_and_cap,)

    def span(self, chunk: slice, length: int) -> slice:
        """Return which of its rows stand for rows of a chunk that has `length` rows."""
        if self.places is None:
            return slice(chunk.start, chunk.start + length)
        first, last = torch.searchsorted(self.places, torch.tensor([chunk.start, chunk.stop])).tolist()
        return slice(first, last)

    def rows(self, span: slice, start: int, length: int) -> Tensor | None:
        """Return the rows [m] of the chunk, which begins at `start`, that a span stands for; None for all."""
        if self._index is None or span.stop - span.start == length:
            return None
        return self._index[span] - start

    def logits(self, span: slice) -> Tensor | None:
        """Return the [m, R] logits of a span of its rows, or None where it is no teacher."""
        return None if self.side is None else self.side.logits(span, False)

    def renamed(self, logits: Tensor | None, rows: slice) -> Tensor | None:
        """Return the [m, V] logits of some of its rows with its end of a text in the place of the student's."""
        if logits is None or self._ends is None or self._written is None:
            return logits
        return self._ends.renamed(logits, self._written[rows])


@dataclass(frozen=True)
class _Turn:
    """A reader's part in a pass: what the kernel is given for it, and the scores that it has found so far."""

    kernel: Kernel
    seat: _Seat
    given: Given
    scores: Scores

    def store(self, part: Scores, place: int) -> None:
        """Write a block's scores into whole [M] tensors.

        A list of small tensors would do, but those that outlive their block lie in the holes of freed large ones and
        fragment the heap.
        """
        if self.scores and part.keys() != self.scores.keys():
            raise ValueError(f"Every block must have the same scores, got {sorted(part)} after {sorted(self.scores)}.")
        for name, value in part.items():
            whole = self.scores.setdefault(name, value.new_empty(self.seat.count))
            whole[place : place + len(value)] = value


def _like(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return room for a gradient of this dtype: the place of the logits themselves, if it is theirs."""
    return logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
