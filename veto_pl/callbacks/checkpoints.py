"""Checkpoints that a run is resumed from exactly."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast
from weakref import proxy

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from veto_pl.callbacks.before_others import BeforeOthers
from veto_pl.callbacks.signals import Signals
from veto_pl.core.mistakes import check_number
from veto_pl.data import PromptDataModule
from veto_pl.exceptions import ConfigurationError, NonFiniteError
from veto_pl.storage.checkpoint_io import AtomicCheckpointIO, OnFailedSave, recover, swap_in
from veto_pl.storage.going_on import going_on
from veto_pl.storage.journals import journals, positions
from veto_pl.storage.resume import PROGRESS, Course, Point, load_validation, rewind, validates_here, warn_of_differences
from veto_pl.storage.run_folder import run_folder


class Checkpoints(ModelCheckpoint):
    """Keeps `last.ckpt`, from which a stopped run goes on as if it had not been stopped, and the best checkpoints.

    `last.ckpt` is written after every validation, at the end of every epoch, when `minutes` have passed, at the end of
    the run, on SIGTERM, SIGHUP and an exception; or, with `every_n_train_steps`, after so many optimizer steps instead
    of the first three. It is not written where an update was cut short in the middle: then the one before stays. Where
    several processes train, an exception on one of them is no reason to save, for the others may be somewhere else.

    A checkpoint holds the state at the beginning of an accumulation window. A run that starts afresh in the folder of
    another one renames its `last.ckpt` to `earlier.ckpt`.

    Args:
        every_n_train_steps: optimizer steps from one save to the next.
        minutes: time from one save to the next, where no number of steps is set.
        monitor: the metric by which the best checkpoints are chosen; None keeps none beside `last.ckpt`.
        save_top_k: how many of the best are kept, -1 for all; None means 1 with `monitor` and 0 without.
        save_last: keep `last.ckpt`.
        on_failed_save: what follows where it cannot be written, on a full disk for instance: `warn` and go on with the
            old one in place, or `stop`.
        best: settings of Lightning's `ModelCheckpoint`, for the best ones.

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
        super().__init__(
            monitor=monitor, save_top_k=kept, save_last=False, every_n_train_steps=every_n_train_steps, **best
        )
        self.minutes = minutes
        self.keep_last = save_last
        self.on_failed_save = on_failed_save
        self._signals = Signals()
        self._before_others = BeforeOthers(self._save_last)
        self._resumed: Point | None = None
        self._row = 0
        self._course: Course | None = None
        self._saved: tuple[int, int, bool] | None = None
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()
        self._batch_has_ended = False
        self._extra_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Has checkpoints written in one piece, and signals kept for the right moment."""
        self._place(trainer)
        self._before_others.install(trainer)
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(self.on_failed_save)
        self._signals.install(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes note of where the run stopped, and lets its records forget what came after."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        warn_of_differences(checkpoint.get("veto_pl_config"), getattr(pl_module, "run_config", None))
        progress = dict(checkpoint.get(PROGRESS) or {})
        if not progress:
            rank_zero_warn("The checkpoint does not say at which row it was written; its epoch starts from the first.")
            return
        self._row = progress.pop("row")
        point = self._resumed = Point(**progress)
        self._saved_step = checkpoint["global_step"]
        for journal in journals(trainer):
            journal.cut(trainer, point.rows.get(journal.journal, 0), point.logged)
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        self._extra_step = int(point.validation_due and 0 <= trainer.max_steps <= checkpoint["global_step"])
        if trainer.strategy.restore_checkpoint_after_setup:
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps Lightning from ending a run at its last step whose validation is still to be done."""
        trainer.fit_loop.epoch_loop.max_steps += self._extra_step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Places the loops and the data where the run stopped."""
        super().on_train_start(trainer, pl_module)
        load_validation(trainer)
        resumed, self._resumed = self._resumed, None
        self._course = Course(trainer, positions(trainer), resumed)
        self._saved, self._saved_at = self._course.window.place, time.monotonic()
        if resumed is not None:
            self._go_on(trainer, resumed)
            if Path(str(trainer.ckpt_path)).absolute() != self._last.absolute():
                self._saved = self._saved_step = None
        elif trainer.global_step == 0 and trainer.is_global_zero and self._is_fitting(trainer):
            self._set_aside()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time for it, and notes where a window begins."""
        self._after_batch(trainer, pl_module)
        assert self._course is not None, "`on_train_start` comes first"
        self._course.begin_batch(trainer, batch_idx, positions(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes that a batch has ended; its metrics are logged after this hook, and belong before the checkpoint."""
        self._batch_has_ended = True
        self._signals.act_on_termination(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves if it is time for it: a validation may take long, and fail."""
        self._after_batch(trainer, pl_module)
        if self._course is not None:
            self._course.begin_validation(positions(trainer))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Comes after all other callbacks, so after the one that validates an average of the weights."""
        self._before_others.have_exchanged()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Acts on signals."""
        if self._is_fitting(trainer):
            self._signals.act_on_termination(trainer)
            self._signals.act_on_requeue(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the state after the validation."""
        if not self._is_fitting(trainer):
            return
        if self._course is not None:
            self._course.end_validation(positions(trainer))
        trainer.fit_loop.epoch_loop.max_steps -= self._extra_step
        self._extra_step = 0
        super().on_validation_end(trainer, pl_module)
        self._save_last(trainer, due=self._every_n_train_steps == 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the state after the epoch."""
        self._after_batch(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer, due=self._every_n_train_steps == 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves out what Lightning would do: the final state is saved before other callbacks change the weights."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves what can be saved, and says how the run is resumed; a signal ends the process with its usual code."""
        name = type(exception).__name__
        if isinstance(exception, SIGTERMException):
            name, exception.code = self._signals.ended_by.name, 128 + self._signals.ended_by
        self._before_others.put_back(trainer)
        if self._course is not None and self._is_fitting(trainer):
            problem = self._rescue(trainer, self._course, exception)
            kept = f"`{self._last}` holds step {self._saved_step}"
            remedy = f"{kept}; the same command with `--ckpt_path last` goes on from there."
            if self._saved_step is None:
                remedy = "There is no checkpoint yet."
            rank_zero_info(f"Stopped by {name} at step {trainer.global_step}. {problem}{remedy}")
        self._signals.remove(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leaves signals to others."""
        self._signals.remove(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Describes the last point between two windows in every checkpoint, whoever asked for it."""
        if self._course is None or not self._is_fitting(trainer):
            return
        for journal in journals(trainer):
            with going_on(journal.journal, key=journal):
                journal.bring_to_disk()
        point = self._course.point(trainer, positions(trainer))
        data = trainer.datamodule  # type: ignore[attr-defined]
        row = data.row_after(point.epoch, point.batches) if isinstance(data, PromptDataModule) else 0
        checkpoint[PROGRESS] = {**asdict(point), "row": row}
        rewind(checkpoint["loops"]["fit_loop"], point, trainer.num_training_batches)

    @property
    def _last(self) -> Path:
        return Path(str(self.dirpath)) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def _place(self, trainer: L.Trainer) -> None:
        """Lightning would ask the first logger for a folder."""
        if self.dirpath is None:
            self.dirpath = str(run_folder(trainer) / "checkpoints")

    def _is_fitting(self, trainer: L.Trainer) -> bool:
        trying = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer.state.fn == TrainerFn.FITTING and not trying

    def _go_on(self, trainer: L.Trainer, point: Point) -> None:
        loop, data = trainer.fit_loop, trainer.datamodule  # type: ignore[attr-defined]
        batches = point.batches
        if isinstance(data, PromptDataModule):
            batches = data.start_at(point.epoch, self._row)
            if batches >= trainer.num_training_batches:  # also where a limit cuts the epoch
                data.start_at(point.epoch, sys.maxsize)
            iter(cast(_DataFetcher, loop._data_fetcher))  # what workers may have fetched already is of another place
        progress = loop.epoch_loop.batch_progress
        batches = int(min(batches, trainer.num_training_batches))
        progress.current.__dict__.update(dict.fromkeys(vars(progress.current), batches))
        progress.is_last_batch = 0 < batches == trainer.num_training_batches
        if self._extra_step and not validates_here(trainer):
            loop.epoch_loop.max_steps -= self._extra_step  # the validation that was due no longer is
            self._extra_step, trainer.should_stop = 0, True

    def _set_aside(self) -> None:
        earlier = self._last.with_name("earlier.ckpt")
        with going_on(earlier, f"writes its first checkpoint in the place of the earlier run's {self._last.name}"):
            if not recover(self._last):
                return
            swap_in(self._last, earlier)
            rank_zero_info(f"The `last.ckpt` of an earlier run in {self.dirpath} is now `earlier.ckpt`.")

    def _after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is done when a batch has ended and its metrics are logged."""
        if not self._batch_has_ended or not self._is_fitting(trainer):
            return
        self._batch_has_ended = False
        self._signals.act_on_requeue(trainer)
        if self._course is not None and self._course.has_updated(trainer):
            self._save_last(trainer, due=self._is_time(trainer))
            super().on_train_batch_end(trainer, pl_module, None, None, 0)  # the best ones

    def _is_time(self, trainer: L.Trainer) -> bool:
        if self._every_n_train_steps:
            return trainer.global_step % self._every_n_train_steps == 0
        late = time.monotonic() - self._saved_at >= 60 * self.minutes
        return bool(trainer.strategy.broadcast(late)) if trainer.world_size > 1 else late

    def _save_last(self, trainer: L.Trainer, *, due: bool = True) -> None:
        if not (due and self.keep_last and self._course is not None and self._is_fitting(trainer)):
            return
        place = self._course.point(trainer, {}).place
        if place == self._saved and not self._failure(trainer):
            return
        self.last_model_path = str(self._last)
        trainer.save_checkpoint(self._last, weights_only=False)
        self._saved, self._saved_at = place, time.monotonic()
        if not self._failure(trainer):
            self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _failure(self, trainer: L.Trainer) -> OSError | None:
        """Why the last write failed; ranks must not differ in what they do next, so only a single process asks."""
        writer = trainer.strategy.checkpoint_io
        return writer.failure if isinstance(writer, AtomicCheckpointIO) and trainer.world_size == 1 else None

    def _rescue(self, trainer: L.Trainer, course: Course, exception: BaseException) -> str:
        """Saves if the state is whole; says what is in the way, if anything."""
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException | NonFiniteError):
            return "Nothing was saved, for the other processes may be somewhere else. "
        if not course.is_whole(trainer, exception):
            return "Nothing was saved, for it happened in the middle of an update. "
        try:
            course.log_what_is_left(trainer)
            self._save_last(trainer)
        except Exception as error:  # the exception that stopped the run is the one to be seen
            return f"It could not be saved: {type(error).__name__}: {error}. "
        return ""

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """The candidates for `ckpt_path: last`, a swap of folders finished first, and what a requeue by SLURM left."""
        self._place(trainer)
        recover(self._last)
        requeued = trainer._checkpoint_connector._hpc_resume_path if SLURMEnvironment.detect() else None
        return super()._find_last_checkpoints(trainer) | ({requeued} if requeued else set())
