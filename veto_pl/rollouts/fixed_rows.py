"""Rows that are written at fixed places on a device, so that every token is the same kernels and can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.models.known_masks import known_rows
from veto_pl.rollouts.endings import Endings
from veto_pl.rollouts.live_rows import EndChecks, Leave, LiveRows, forget
from veto_pl.rollouts.recording import Recorder, Repeated
from veto_pl.rollouts.token_buffer import Draw, Drawn, TokenBuffer
from veto_pl.seams import LanguageModel

if TYPE_CHECKING:
    from veto_pl.rollouts.kv_cache import Held

LEAST_SHARE = 0.5
"""Rows leave when at least this share of them has ended: a rollout of L rows is recorded 1 + log2(L) times at most."""
WORTH_A_RECORDING = 64
"""Tokens that are still to be written, at most, for which fewer rows are worth another recording."""


@dataclass
class FixedRows:
    """L rows on their way to M columns, of which C are completion. All tensors are written in place.

    Args:
        writers: the models.
        caches: what each remembers, of fixed size.
        draw: the tokens.
        endings: of completions.
        logits: [L, V] of each writer.
        rows: [L] int64, the number of each row in the rollout.
        mask: [L, M] int64, 0 on padding and on columns that nothing is written to yet.
        positions: [L, 1] int64 of the next token, as each writer counts.
        alive: [L] bool.
        drawn: [L] int64, the last token.
        uniform: [C, L] random numbers.
        place: [1] int64, the column of the cache that the next token is written to.
        column: [1] int64, the tokens that have been written.
        ids: [C, L] int64, written so far.
        logp: [C, L] their log-probabilities.
        lived: [C, L] bool, which of them count.
        by_teacher: [C, L] bool, or None where nobody takes turns.
    """

    writers: Sequence[LanguageModel]
    caches: list[Any]
    draw: Draw
    endings: Endings
    logits: list[Tensor]
    rows: Tensor
    mask: Tensor
    positions: list[Tensor]
    alive: Tensor
    drawn: Tensor
    uniform: Tensor
    place: Tensor
    column: Tensor
    ids: Tensor
    logp: Tensor
    lived: Tensor
    by_teacher: Tensor | None = None

    @classmethod
    def of(cls, live: LiveRows, draw: Draw, endings: Endings, uniform: Tensor) -> FixedRows:
        """Take over rows whose prompts have been read; `uniform` are the numbers of all rows, [C, R]."""
        from veto_pl.rollouts.fixed_cache import fix_cache, fixed_columns, fixed_mask

        columns = fixed_columns(live.width, len(uniform))
        place = torch.full_like(live.rows[:1], live.width)
        for cache in live.caches:
            fix_cache(cache, columns, live.width, place)
        ids = torch.zeros_like(uniform[:, live.rows], dtype=torch.int64)
        return cls(
            writers=live.writers,
            caches=live.caches,
            draw=draw,
            endings=endings,
            logits=live.logits,
            rows=live.rows,
            mask=fixed_mask(live.mask[:, : live.width], columns),
            positions=[position.clone() for position in live.positions],
            alive=live.alive,
            drawn=torch.zeros_like(live.rows),
            uniform=uniform[:, live.rows],
            place=place,
            column=torch.zeros_like(place),
            ids=ids,
            logp=torch.zeros_like(ids, dtype=torch.float32),
            lived=torch.zeros_like(ids, dtype=torch.bool),
        )

    def step(self) -> None:
        """Write a token of each row, and let the writers read it."""
        self.write()
        self.read()

    def write(self) -> None:
        """Draw a token of each row, and find those that end with it; stop strings are found later."""
        uniform = self.uniform.index_select(0, self.column)[0]
        written = self.draw(self.logits, uniform, self.rows)
        if written.by_teacher is not None and self.by_teacher is None:
            self.by_teacher = torch.zeros_like(self.lived)
        wholes = (self.ids, self.logp, self.lived, self.by_teacher)
        for whole, part in zip(wholes, (written.ids, written.logp, self.alive, written.by_teacher), strict=True):
            if whole is not None and part is not None:
                whole.index_copy_(0, self.column, part[None].to(whole.dtype))
        self.drawn.copy_(written.ids)
        self.alive.logical_and_(~self.endings.with_eos(written.ids))

    def read(self) -> None:
        """Let the writers read the last token of every row."""
        self.mask.index_fill_(1, self.place, 1)
        with known_rows(packed=False, padded=True):
            for held, model, *known in zip(self.logits, self.writers, self.caches, self.positions, strict=True):
                held.copy_(model.next_logits(self.drawn[:, None], self.mask, *known))
        for counter in (*self.positions, self.place, self.column):
            counter.add_(1)

    def end_at_stops(self, begin: int, end: int) -> None:
        """Find stop strings in the columns from `begin` to `end`; what was written behind one does not count."""
        if self.endings.stop:
            block = slice(begin, end)
            behind = self.endings.behind_stops(self.rows, self.ids[block], self.lived[block])
            self.lived[block].logical_and_(~behind[:-1])
            self.alive.logical_and_(~behind[-1])

    def enter(self, buffer: TokenBuffer, end: int) -> None:
        """Write the columns up to `end` that the buffer does not have yet."""
        block = slice(buffer.columns, end)
        by_teacher = None if self.by_teacher is None else self.by_teacher[block].T
        buffer.enter(self.rows, Drawn(self.ids[block].T, self.logp[block].T, by_teacher), self.lived[block].T)

    def keep(self, survivors: Tensor, leaving: Tensor | None = None) -> list[Held]:
        """Forget all rows but these ([K] int64); what is left is in new places. Return as `LiveRows.keep` does."""
        from veto_pl.rollouts.kv_cache import rows_of

        for name in ("rows", "mask", "alive", "drawn"):
            setattr(self, name, getattr(self, name)[survivors])
        for name in ("uniform", "ids", "logp", "lived", "by_teacher"):
            held = getattr(self, name)
            setattr(self, name, None if held is None else held[:, survivors])
        self.logits, self.positions = ([held[survivors] for held in kept] for kept in (self.logits, self.positions))
        left: list[Held] = [[] for _ in self.caches]
        for held_before, cache in zip(left, self.caches, strict=True):
            for layer in cache.layers:
                held_before += rows_of(layer, leaving)
                layer.keep(survivors)
        return left


def write_fixed(
    rows: FixedRows,
    buffer: TokenBuffer,
    drop_at: float,
    checks: EndChecks,
    repeated: Callable[[FixedRows], Callable[[], None]],
    leave: Leave = forget,
) -> None:
    """Write tokens until every row has ended or the buffer is full.

    Args:
        rows: whose prompts have been read.
        buffer: what is written is entered there.
        drop_at: the share of rows that have ended at which they leave, if it is above `LEAST_SHARE`.
        checks: when to look who has ended.
        repeated: returns what writes a token and reads it, for rows in their present places.
        leave: lets rows go.
    """
    columns, step, seen = buffer.ids.shape[1], repeated(rows), 0
    for column in range(1, columns + 1):
        if column == columns:
            rows.write()  # nobody reads the last token
        else:
            step()
        if not (checks.due(column) or column == columns):
            continue
        rows.end_at_stops(seen, column)
        seen, survivors = column, rows.alive.nonzero()[:, 0]
        if column == columns or not checks.goes_on(len(survivors) > 0):
            break
        if len(survivors) <= leaving_at(len(rows.rows), drop_at) and columns - column >= WORTH_A_RECORDING:
            rows.enter(buffer, column)
            leave(rows, survivors)
            step = repeated(rows)
    rows.enter(buffer, column)


def leaving_at(rows: int, drop_at: float) -> float:
    """Return the number of rows that are left when others leave.

    Example:
        >>> leaving_at(64, 0.25), leaving_at(1, 0.25)
        (32.0, 0.0)
    """
    return rows - max(1.0, max(drop_at, LEAST_SHARE) * rows)


def repeats(recorder: Recorder, failed: Callable[[Exception], None], *, with_draw: bool) -> Any:
    """Return the argument `repeated` of `write_fixed`: a step is recorded, or what of it is no draw.

    Args:
        recorder: of the device.
        failed: is told an error while a step was recorded.
        with_draw: whether tokens are drawn in what is recorded; where not, the host draws them each time.
    """

    def repeated(rows: FixedRows) -> Callable[[], None]:
        if with_draw:
            return Repeated(rows.step, recorder, failed)
        read = Repeated(rows.read, recorder, failed)

        def step() -> None:
            rows.write()
            read()

        return step

    return repeated
