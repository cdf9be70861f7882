"""Checks of the trainer's limits against the length of an epoch, as soon as that is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from veto_pl.core.mistakes import Mistake, report

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def check_epoch(trainer: Trainer, batches: int) -> None:
    """Compare the trainer's limits with the training batches of an epoch.

    Args:
        trainer: fits.
        batches: of an epoch, on each rank.

    Raises:
        ConfigurationError: a share of the batches is less than one, or a validation is due after more than there are.
    """
    report(_beyond(trainer, batches))


def _beyond(trainer: Trainer, batches: int) -> Iterator[Mistake]:
    limit, interval = trainer.limit_train_batches, getattr(trainer, "val_check_interval", None)
    used = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if isinstance(limit, float) and not used:
        yield Mistake("trainer.limit_train_batches", f"{limit:g} of {batches} batches", "at least one batch",
                      "Raise it, or give a whole number.")  # fmt: skip
        return
    validates = trainer.check_val_every_n_epoch is not None and bool(trainer.limit_val_batches)
    if validates and isinstance(interval, int) and interval > used:
        yield Mistake("trainer.val_check_interval", f"{interval}", f"at most the {used} batches of an epoch",
                      "Lower it, or count over epochs with `trainer.check_val_every_n_epoch: null`.")  # fmt: skip
