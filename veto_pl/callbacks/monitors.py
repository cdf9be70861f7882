"""Which metrics callbacks follow, compared with what a run measures as soon as that is known."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L

from veto_pl.checks.monitored import may_log_more, monitored
from veto_pl.core.mistakes import Mistake, did_you_mean, report


def name_with(monitor: str) -> str:
    """Return a name of checkpoint files with the value of a metric, whose own name may have slashes."""
    short = monitor.rpartition("/")[2]
    return f"epoch={{epoch}}-step={{step}}-{short}={{{monitor}:.4f}}"


class Monitors(L.Callback):
    """Ends a run whose callbacks follow a metric that it does not measure: at its start, or after its first step.

    What validations measure is known before anything is loaded; whether there are rows to validate on is known when
    the data are, and what training logs after the first step.
    """

    def __init__(self) -> None:
        self._step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise `ConfigurationError` if a callback follows a validation metric without rows to validate on."""
        _load_validation(trainer)
        self._step = trainer.global_step
        if sum(trainer.num_val_batches) == 0:
            remedy = "Name some in `data`, or follow what `train/` logs."
            report(
                Mistake(path, f"`{name}`, without rows to validate on", "validation rows", remedy)
                for path, name in _followed(trainer, "validation/")
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Raise `ConfigurationError` if the first step did not log a training metric that a callback follows."""
        if self._step in (None, trainer.global_step):
            return
        self._step = None
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("train/"))
        more = may_log_more(trainer.callbacks)  # type: ignore[attr-defined]
        report(
            Mistake(
                path,
                f"`{name}`",
                f"what training logs: {', '.join(logged)}",
                did_you_mean(name, logged) or "Correct it.",
            )
            for path, name in _followed(trainer, "train/")
            if name not in logged and not more
        )


def _followed(trainer: L.Trainer, prefix: str) -> Iterator[tuple[str, str]]:
    callbacks = [(type(callback).__name__, callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return ((path, name) for path, name in monitored(callbacks) if name.startswith(prefix))


def _load_validation(trainer: L.Trainer) -> None:
    """Load the validation rows: a run that has not validated yet does not know whether there are any."""
    if trainer.enable_validation and trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
