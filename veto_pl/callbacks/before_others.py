"""What has to be done before callbacks of others put other weights in the model's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging

from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.going_on import warn_on_errors, warn_on_write_errors


class BeforeOthers(L.Callback):
    """Stands first among the callbacks, where Lightning has those that write checkpoints stand last.

    Weight averaging leaves its average in the model at the end of training, and during each validation. A checkpoint
    has to hold the weights that are trained.

    Args:
        save: writes the last checkpoint, given the trainer.
    """

    def __init__(self, save: Callable[[L.Trainer], None]) -> None:
        self._save = save
        self._exchanged = False

    def install(self, trainer: L.Trainer) -> None:
        """Insert this callback as the first one, and turn errors of loggers and other callbacks into warnings.

        `trainer.callbacks` is replaced by a new list; the one that Lightning iterates over now is not changed.

        Raises:
            ConfigurationError: one of the callbacks cannot work with a student that Lightning loads after their setup.
        """
        for logger in trainer.loggers:
            warn_on_write_errors(
                logger, "log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            warn_on_errors(callback, "on_exception")
        if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigurationError(
                "`trainer.callbacks`: given `StochasticWeightAveraging`, which copies the model before its student is "
                "loaded and so averages nothing. Use `EMAWeightAveraging`."
            )
        if self not in (callbacks := trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks = [self, *callbacks]  # type: ignore[attr-defined]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def mark_exchanged(self) -> None:
        """Record that all other callbacks have begun the validation, so averaged weights may be in the model."""
        self._exchanged = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that the other callbacks restore the trained weights themselves from here on."""
        self._exchanged = False

    def restore_weights(self, trainer: L.Trainer) -> None:
        """Restore the trained weights if an exception ended a validation while averaged ones were in the model."""
        if not self._exchanged:
            return
        self._exchanged = False
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            exchange: Callable[[Any], None] | None = getattr(callback, "_swap_models", None)  # Lightning's own name
            if exchange is not None and getattr(callback, "_average_model", None) is not None:
                exchange(trainer.lightning_module)
