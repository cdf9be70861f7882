"""Training rows that a run which was stopped goes on with, at the row that came next."""

from __future__ import annotations

from typing import Any, Protocol


class RowOrder(Protocol):
    """The order of an epoch's rows over all ranks."""

    length: int

    def batches_before(self, epoch: int, row: int, batch_size: int) -> int:
        """Begin `epoch` at `row`, and return how many batches of this size the epoch has before those that are left."""


class ResumedRows:
    """A data module whose epoch can begin at any row of its global order, on any number of ranks.

    Attributes:
        batch_size: rows of a batch, on each rank.
    """

    batch_size: int
    trainer: Any
    _order: RowOrder
    _start = (0, 0, 0)

    def row_after(self, epoch: int, batches: int) -> int:
        """Return the row of the epoch's global order that follows the first `batches` batches of all ranks."""
        _, row, before = self._start if self._start[0] == epoch else (epoch, 0, 0)
        return min(row + (batches - before) * self.batch_size * self._place[1], self._order.length)

    def start_at(self, epoch: int, row: int) -> int:
        """Let the present training batches begin at a row of the epoch's global order.

        The row holds for any number of ranks and any batch size, so a run can be resumed on others.

        Returns:
            How many batches of the present size, over the present ranks, an epoch has before those that are left.
        """
        row = min(row, self._order.length)
        before = self._order.batches_before(epoch, row, self.batch_size)
        self._start = (epoch, row, before)
        return before

    @property
    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
