"""The rows that the decode loop writes, and when it looks which of them have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.core.ranks import Sharding
from veto_pl.models.known_masks import known_rows
from veto_pl.seams import LanguageModel

if TYPE_CHECKING:
    from veto_pl.rollouts.kv_cache import Held


@dataclass
class LiveRows:
    """The rows that are being written: L of them, `width` columns so far.

    Args:
        writers: the models.
        caches: what each remembers of these rows.
        logits: [L, V] of each.
        rows: [L] int64, the number of each row in the rollout.
        mask: [L, M] int64, 0 on padding; columns beyond `width` are ones already.
        positions: [L, 1] int64 of the next token, as each writer counts.
        alive: [L] bool.
        width: columns in use.
        padded: whether any of these rows has padding.
    """

    writers: Sequence[LanguageModel]
    caches: list[Any]
    logits: list[Tensor]
    rows: Tensor
    mask: Tensor
    positions: list[Tensor]
    alive: Tensor
    width: int
    padded: bool

    def feed(self, drawn: Tensor) -> None:
        """Let the writers read one more token of every row."""
        self.width += 1
        mask = self.mask[:, : self.width] if self.padded else None
        with known_rows(packed=False, padded=self.padded):
            for i, (model, cache) in enumerate(zip(self.writers, self.caches, strict=True)):
                self.logits[i] = model.next_logits(drawn[:, None], mask, cache, self.positions[i])
        self.positions = [position + 1 for position in self.positions]

    def keep(self, survivors: Tensor, leaving: Tensor | None = None) -> list[Held]:
        """Forget all rows but these ([K] int64), and the columns that are padding in all of them.

        Returns:
            What each cache held of the rows `leaving` ([G] int64), as `kv_cache.keep` does.
        """
        from veto_pl.rollouts.kv_cache import can_drop_columns, keep

        self.rows, self.positions = self.rows[survivors], [position[survivors] for position in self.positions]
        self.alive, self.mask = self.alive[survivors], self.mask[survivors]
        first = int(shared_padding(self.mask)) if self.padded and all(map(can_drop_columns, self.caches)) else 0
        self.mask, self.width = self.mask[:, first:], self.width - first
        self.padded = self.padded and not bool(self.mask.all())
        return [keep(cache, survivors, first, leaving) for cache in self.caches]


Leave = Callable[[Any, Tensor], None]
"""Lets all rows but the survivors ([K] int64) go, of `LiveRows` or of rows at fixed places."""


def forget(rows: Any, survivors: Tensor) -> None:
    """Let rows go, and keep nothing of them."""
    rows.keep(survivors)


def shared_padding(mask: Tensor) -> Tensor:
    """Count the first columns that are 0 in every row."""
    return (mask.amax(0).cumsum(0) == 0).sum()


@dataclass(frozen=True)
class EndChecks:
    """When to look who has ended, and how long to go on.

    Args:
        device: asking an accelerator how many rows are left makes it wait; the CPU is never ahead.
        in_step: the ranks that must run the models equally often, or None.
    """

    device: torch.device
    in_step: Sharding | None

    def due(self, column: int) -> bool:
        """Return whether to count the rows that are left after `column` tokens."""
        return column % (1 if self.device.type == "cpu" else 4) == 0

    def goes_on(self, alive: bool) -> bool:
        """Return whether any rank still writes. Collective where `in_step` is given: call it on every rank."""
        return alive if self.in_step is None else self.in_step.any(alive)
