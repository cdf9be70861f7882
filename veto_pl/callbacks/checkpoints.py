"""Checkpoints that a run is resumed from exactly."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import proxy

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from veto_pl.callbacks.before_others import BeforeOthers
from veto_pl.callbacks.monitors import name_with
from veto_pl.callbacks.signals import Signals
from veto_pl.core.mistakes import check_number
from veto_pl.data.resumed_rows import ResumedRows
from veto_pl.exceptions import ConfigurationError, NonFiniteError
from veto_pl.storage.atomic import recover
from veto_pl.storage.checkpoint_io import AtomicCheckpointIO, OnFailedSave, rename_earlier
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.journals import journals, positions
from veto_pl.storage.resume import PROGRESS, ResumePoint, begin_window, place_data, place_loops, warn_of_differences
from veto_pl.storage.run_folder import run_folder


class Checkpoints(ModelCheckpoint):
    """Keeps `last.ckpt`, from which a stopped run goes on as if it had not been stopped, and the best checkpoints.

    `last.ckpt` is written after every validation, at the end of every epoch, when `minutes` have passed, at the end of
    the run, on SIGTERM, SIGHUP and an exception; or, with `every_n_train_steps`, after so many optimizer steps instead
    of the first three. It is not written where an exception comes between an update and the end of its micro-batch:
    then the one before stays. Where several processes train, an exception on one of them is no reason to save, for the
    others may be somewhere else.

    A checkpoint holds the state between two accumulation windows. A run that starts afresh in the folder of
    another one renames its `last.ckpt` to `earlier.ckpt`.

    Args:
        every_n_train_steps: optimizer steps from one save to the next.
        minutes: time from one save to the next, where no number of steps is set.
        monitor: the metric by which the best checkpoints are chosen; None keeps none beside `last.ckpt`.
        save_top_k: how many of the best are kept, -1 for all; None means 1 with `monitor` and 0 without.
        save_last: keep `last.ckpt`.
        on_failed_save: what follows where it cannot be written, on a full disk for instance: `warn` and go on with the
            old one in place, or `stop`.
        best: settings of Lightning's `ModelCheckpoint`, for the best ones; by default their name tells the monitor.

    Raises:
        ConfigurationError: a number out of range, or best checkpoints without a `monitor`.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        minutes: float = 10.0,
        monitor: str | None = None,
        save_top_k: int | None = None,
        save_last: bool = True,
        on_failed_save: OnFailedSave = "warn",
        **best: Any,
    ) -> None:
        kept = (0 if monitor is None else 1) if save_top_k is None else save_top_k
        check_number("Checkpoints.every_n_train_steps", 1 if every_n_train_steps is None else every_n_train_steps, 1)
        check_number("Checkpoints.minutes", minutes, 0)
        check_number("Checkpoints.save_top_k", kept, -1)
        if kept > 0 and monitor is None:
            raise ConfigurationError(f"`Checkpoints.save_top_k` needs a `monitor` that tells the best, got {kept}.")
        if monitor is not None and best.get("filename") is None and best.get("auto_insert_metric_name", True):
            best |= {"filename": name_with(monitor), "auto_insert_metric_name": False}
        super().__init__(
            monitor=monitor, save_top_k=kept, save_last=False, every_n_train_steps=every_n_train_steps, **best
        )
        self.minutes = minutes
        self.keep_last = save_last
        self.on_failed_save = on_failed_save
        self._signals = Signals()
        self._before_others = BeforeOthers(self._save_last)
        self._point: ResumePoint | None = None
        self._resumed_row: int | None = None
        self._updates = False
        self._saved: tuple[int, int, bool] | None = None
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()
        self._batch_has_ended = False
        self._late = False
        self._extra_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install atomic checkpoint writing, and signal handlers that wait until the state can be saved."""
        self._set_folder(trainer)
        self._before_others.install(trainer)
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(self.on_failed_save)
        self._signals.install(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read where the run stopped, and cut its journals back to that point."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        warn_of_differences(checkpoint.get("veto_pl_config"), getattr(pl_module, "run_config", None))
        progress = dict(checkpoint.get(PROGRESS) or {})
        if not progress:
            rank_zero_warn("The checkpoint does not say at which row it was written; its epoch starts from the first.")
            return
        point = self._point = ResumePoint.read(progress)
        self._resumed_row, self._saved_step = progress["row"], checkpoint["global_step"]
        place_loops(checkpoint["loops"]["fit_loop"], point, self._saved_step)
        for journal in journals(trainer):
            journal.cut(trainer, point.rows.get(journal.journal, 0), self._saved_step)
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        self._extra_step = int(point.validation_due and 0 <= trainer.max_steps <= self._saved_step)
        if trainer.strategy.restore_checkpoint_after_setup:
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise `max_steps` by one if the last step's validation is due, before which Lightning would end the run."""
        trainer.fit_loop.epoch_loop.max_steps += self._extra_step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the data at the row where the run stopped."""
        super().on_train_start(trainer, pl_module)
        row, self._resumed_row = self._resumed_row, None
        if row is None or self._point is None:
            total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
            self._point = ResumePoint(trainer.current_epoch, 0, total.processed, positions(trainer))
        else:
            data = trainer.datamodule  # type: ignore[attr-defined]
            place_data(trainer, self._point, row, data.start_at if isinstance(data, ResumedRows) else None)
        self._saved, self._saved_at, self._updates = self._point.place, time.monotonic(), False
        if row is not None and Path(str(trainer.ckpt_path)).absolute() != self._last.absolute():
            self._saved = self._saved_step = None
        elif row is None and trainer.global_step == 0 and trainer.is_global_zero and self._is_fitting(trainer):
            rename_earlier(self._last)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save `last.ckpt` if it is due, before the next batch begins."""
        if self._extra_step:  # the validation that was due no longer is
            self._take_back_extra_step(trainer)
            raise StopIteration
        self._after_batch(trainer, pl_module)
        assert self._point is not None, "`on_train_start` comes first"
        if self._point.batches == batch_idx:
            begin_window(trainer)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Record that an update has begun: until the batch ends, the state must not be saved."""
        self._updates = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record that a batch has ended; it is saved by a later hook, once Lightning has logged its metrics."""
        self._batch_has_ended = True
        if self._updates:  # between two windows, the only place where the ranks can end
            late = time.monotonic() - self._saved_at >= 60 * self.minutes
            self._late = self._signals.agree(trainer, late=late)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save `last.ckpt` if it is due, since a validation may take long or fail."""
        self._after_batch(trainer, pl_module, validation_due=True)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that every other callback has begun the validation; this hook runs after theirs."""
        self._before_others.mark_exchanged()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Act on pending signals. Collective: call it on every rank."""
        if self._is_fitting(trainer):
            self._signals.agree(trainer)
            self._signals.act_on_requeue(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state after the validation."""
        if not self._is_fitting(trainer):
            return
        if self._point is not None and self._point.validation_due:
            self._point = replace(self._point, rows=positions(trainer), validation_due=False)
        self._take_back_extra_step(trainer)
        super().on_validation_end(trainer, pl_module)
        self._save_last(trainer, due=self._every_n_train_steps == 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state after the epoch."""
        self._after_batch(trainer, pl_module)
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if self._point is not None and self._point.batches == batches.processed:  # else a window is not over
            self._point = self._point.advanced(trainer, positions(trainer))
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer, due=self._every_n_train_steps == 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: `BeforeOthers` has saved the final state before other callbacks changed the weights."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save what can be saved, and log how to resume; a signal ends the process with its usual exit code."""
        name = type(exception).__name__
        if isinstance(exception, SIGTERMException):
            name, exception.code = self._signals.ended_by.name, 128 + self._signals.ended_by
        self._before_others.restore_weights(trainer)
        if self._point is not None and self._is_fitting(trainer):
            problem = self._save_if_complete(trainer, exception)
            kept = (
                f"`{self._last}` holds step {self._saved_step}; the same command with `--ckpt_path last` goes on from "
            )
            kept += "there."
            remedy = "There is no checkpoint yet." if self._saved_step is None else kept
            rank_zero_info(f"Stopped by {name} at step {trainer.global_step}. {problem}{remedy}")
        self._signals.remove(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the signal handlers that were there before."""
        self._signals.remove(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the last point between two accumulation windows to every checkpoint, whoever saves it."""
        if self._point is None or not self._is_fitting(trainer):
            return
        for journal in journals(trainer):
            with warn_if_unwritten(journal.journal, key=journal):
                journal.bring_to_disk()
        point = self._point.advanced(trainer, positions(trainer)) if self._updates else self._point
        data = trainer.datamodule  # type: ignore[attr-defined]
        row = data.row_after(point.epoch, point.batches) if isinstance(data, ResumedRows) else 0
        checkpoint[PROGRESS] = {**asdict(point), "row": row}

    @property
    def _last(self) -> Path:
        return Path(str(self.dirpath)) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def _set_folder(self, trainer: L.Trainer) -> None:
        """Set the checkpoint folder to the run's; Lightning would take that of the first logger."""
        if self.dirpath is None:
            self.dirpath = str(run_folder(trainer) / "checkpoints")

    def _is_fitting(self, trainer: L.Trainer) -> bool:
        trying = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer.state.fn == TrainerFn.FITTING and not trying

    def _take_back_extra_step(self, trainer: L.Trainer) -> None:
        trainer.fit_loop.epoch_loop.max_steps -= self._extra_step
        self._extra_step = 0

    def _after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, *, validation_due: bool = False) -> None:
        """Advance the resume point and save, once a batch has ended and its metrics are logged."""
        if not self._batch_has_ended or not self._is_fitting(trainer):
            return
        self._batch_has_ended = False
        has_updated = self._advance(trainer, validation_due=validation_due)
        self._signals.act_on_requeue(trainer)
        if has_updated:
            every = self._every_n_train_steps
            self._save_last(trainer, due=trainer.global_step % every == 0 if every else self._late)
            super().on_train_batch_end(trainer, pl_module, None, None, 0)  # the best ones

    def _advance(self, trainer: L.Trainer, *, validation_due: bool) -> bool:
        """Move the resume point behind the current window if its update is done. Return whether it is."""
        has_updated, self._updates = self._updates, False
        if has_updated and self._point is not None:
            self._point = self._point.advanced(trainer, positions(trainer), validation_due=validation_due)
        return has_updated

    def _save_last(self, trainer: L.Trainer, *, due: bool = True) -> None:
        if not (due and self.keep_last and self._point is not None and self._is_fitting(trainer)):
            return
        if self._point.place == self._saved and not self._failure(trainer):
            return
        self.last_model_path = str(self._last)
        trainer.save_checkpoint(self._last, weights_only=False)
        self._saved, self._saved_at = self._point.place, time.monotonic()
        if not self._failure(trainer):
            self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _failure(self, trainer: L.Trainer) -> OSError | None:
        """Return the error of the last write in a run of one process, else None, since ranks must all act alike."""
        writer = trainer.strategy.checkpoint_io
        return writer.failure if isinstance(writer, AtomicCheckpointIO) and trainer.world_size == 1 else None

    def _save_if_complete(self, trainer: L.Trainer, exception: BaseException) -> str:
        """Save the state if it is complete. Return a sentence on why it was not saved, or an empty string."""
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException | NonFiniteError):
            return "Nothing was saved, for the other processes may be somewhere else. "
        if isinstance(exception, NonFiniteError):  # raised in place of the update
            self._updates = False
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if self._batch_has_ended and batches.processed == batches.completed:
            self._advance(trainer, validation_due=True)  # whether one is due, Lightning asks when the run is resumed
        if self._updates:
            return "Nothing was saved, for it happened between an update and the end of its micro-batch. "
        try:
            self._save_last(trainer)
        except Exception as error:  # the exception that stopped the run is the one to be seen
            return f"It could not be saved: {type(error).__name__}: {error}. "
        return ""

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """Return the candidates for `ckpt_path: last`, among them the checkpoint of a requeue by SLURM.

        An interrupted replacement of `last.ckpt` is completed first.
        """
        self._set_folder(trainer)
        recover(self._last)
        requeued = trainer._checkpoint_connector._hpc_resume_path if SLURMEnvironment.detect() else None
        return super()._find_last_checkpoints(trainer) | ({requeued} if requeued else set())
