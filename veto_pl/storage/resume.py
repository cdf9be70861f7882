"""From where a stopped run goes on: the beginning of an accumulation window, whenever its checkpoint was written.

Weights, optimizer and schedule change at optimizer steps only, and no random generator has a state. So inside a window
the state is that of the window's beginning: a checkpoint names this point, and a resumed run repeats the micro-batches
after it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.storage.config_files import load

PROGRESS = "veto_pl_progress"
"""The key under which a checkpoint holds a `Point`, and the row that the next batch begins with."""


@dataclass(frozen=True)
class Point:
    """A point between two accumulation windows.

    Args:
        epoch: complete epochs.
        batches: micro-batches of the next epoch that are done.
        total: micro-batches of the whole run that are done.
        logged: the step under which the loggers put what comes next.
        rows: rows of each journal.
        validation_due: the validation that belongs here has not been completed.
    """

    epoch: int
    batches: int
    total: int
    logged: int
    rows: Mapping[str, int]
    validation_due: bool = False

    @property
    def place(self) -> tuple[int, int, bool]:
        """Equal for points with equal state."""
        return self.epoch, self.batches, self.validation_due


@dataclass(frozen=True)
class Counts:
    """Updates of a run: optimizer steps, and steps of the learning-rate schedule."""

    steps: int
    scheduled: int

    @classmethod
    def of(cls, trainer: L.Trainer) -> Counts:
        """The present counts."""
        loop = trainer.fit_loop.epoch_loop
        return cls(loop.global_step, loop.scheduler_progress.total.completed)


class Course:
    """Follows a run that trains, from hook to hook, and says at which point its state is.

    Args:
        trainer: fits, and has restored its loops.
        rows: the present positions of the journals.
        resumed: where the run was stopped, if it was.
    """

    def __init__(self, trainer: L.Trainer, rows: Mapping[str, int], resumed: Point | None = None) -> None:
        loop = trainer.fit_loop.epoch_loop
        here = Point(trainer.current_epoch, 0, loop.total_batch_idx + 1, loop._batches_that_stepped, rows)
        self.window = resumed or here
        self.updates = Counts.of(trainer)
        self._resumed = resumed
        self._validated = False
        self._before_validation: Mapping[str, int] | None = None

    def begin_batch(self, trainer: L.Trainer, batch_idx: int, rows: Mapping[str, int]) -> None:
        """A micro-batch begins, and with it, perhaps, a window."""
        loop = trainer.fit_loop.epoch_loop
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if self._resumed is not None:
            # Whether Lightning has counted the last step again depends on what was left to do after it.
            loop._batches_that_stepped = self._resumed.logged
        if self._resumed is not None or self.has_updated(trainer) or epochs.processed != self.window.epoch:
            self.window = Point(epochs.processed, batch_idx, loop.total_batch_idx, loop._batches_that_stepped, rows)
            self.updates = Counts.of(trainer)
            _forget_logged(trainer)
        self._resumed, self._before_validation, self._validated = None, None, False

    def begin_validation(self, rows: Mapping[str, int]) -> None:
        """What is logged from here on belongs to the validation."""
        self._before_validation = rows

    def end_validation(self, rows: Mapping[str, int]) -> None:
        """The validation is over, and logged."""
        self._before_validation, self._validated = None, True
        if self.window.validation_due:
            self.window = replace(self.window, validation_due=False, rows=rows)

    def has_updated(self, trainer: L.Trainer) -> bool:
        """Whether the update of the window is done."""
        return Counts.of(trainer) != self.updates

    def point(self, trainer: L.Trainer, rows: Mapping[str, int]) -> Point:
        """The point whose state the weights have: where the window began, or its end if its update is done."""
        updated = self.has_updated(trainer)
        epochs: Any = trainer.fit_loop.epoch_progress.current
        progress = trainer.fit_loop.epoch_loop.batch_progress
        total: Any = progress.total
        batches: Any = progress.current
        logged = self.window.logged + updated
        # Where `max_steps` ends an epoch early, Lightning counts it as complete; a longer run goes on inside it.
        complete = progress.is_last_batch or batches.processed >= trainer.num_training_batches
        if epochs.processed > self.window.epoch and (epochs.ready > epochs.processed or complete):
            return Point(epochs.processed, 0, total.processed, logged, rows)
        if not updated:
            return self.window
        between = batches.ready == batches.processed
        due = between and not self._validated and validates_here(trainer)
        if due and self._before_validation is not None:
            rows = self._before_validation
        return Point(self.window.epoch, batches.processed, total.processed, logged, rows, due)

    def is_whole(self, trainer: L.Trainer, exception: BaseException) -> bool:
        """Whether an exception has left weights, moments and schedule as they belong together."""
        schedule = trainer.fit_loop.epoch_loop.scheduler_progress.total
        now = Counts.of(trainer)
        followed = now.steps - self.updates.steps <= now.scheduled - self.updates.scheduled
        in_step = not trainer.lr_scheduler_configs or (followed and schedule.ready == schedule.completed)
        return in_step and not _update_is_cut(exception)

    def log_what_is_left(self, trainer: L.Trainer) -> None:
        """Logs a step whose update is done where an exception has come before its log, as the loop would have done."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if self.has_updated(trainer) and batches.ready == batches.processed == batches.completed + 1:
            trainer._logger_connector.update_train_step_metrics()


def _update_is_cut(exception: BaseException) -> bool:
    """Whether it was raised while the optimizer changed the weights one by one, after the closure of the gradient."""
    frames = {frame.f_code.co_name for frame, _ in traceback.walk_tb(exception.__traceback__)}
    return "_optimizer_step" in frames and not frames & {"_wrap_closure", "_after_closure", "closure"}


def _forget_logged(trainer: L.Trainer) -> None:
    """Lightning logs the value of an earlier step again where a step has none, which a resumed run does not know."""
    results = trainer.fit_loop.epoch_loop._results
    for name in [name for name, result in results.items() if not result.meta.on_epoch]:
        del results[name]


def validates_here(trainer: L.Trainer) -> bool:
    """Whether a validation follows the last micro-batch."""
    loop = trainer.fit_loop
    if loop._data_fetcher is None or sum(trainer.num_val_batches) == 0:
        return False
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def load_validation(trainer: L.Trainer) -> None:
    """Else a run that has not validated yet would not know whether there is anything to validate."""
    if trainer.enable_validation and trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True


def rewind(loops: dict[str, Any], point: Point, batches_of_an_epoch: float) -> None:
    """Sets the progress in a checkpoint's `fit_loop` entry to a point, in the form that Lightning resumes exactly."""
    begun = point.epoch + (point.batches > 0)
    for tracker in loops["epoch_progress"].values():
        tracker.update(ready=begun, started=begun, processed=point.epoch, completed=point.epoch)
    progress = loops["epoch_loop.batch_progress"]
    _set(progress["total"], point.total)
    _set(progress["current"], point.batches)
    progress["is_last_batch"] = 0 < point.batches == batches_of_an_epoch
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = point.logged - point.validation_due
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for trackers in (loops["epoch_loop.scheduler_progress"], optimizer["step"], optimizer["zero_grad"]):
        for tracker in trackers.values():
            _set(tracker, tracker["completed"])
    validation = loops["epoch_loop.val_loop.batch_progress"]
    _set(validation["total"], 0)
    _set(validation["current"], 0)
    validation["is_last_batch"] = False
    if point.validation_due:  # one batch begun and not finished is how Lightning knows that it has to validate
        validation["total"].update(ready=1, started=1)


def _set(tracker: dict[str, int], value: int) -> None:
    tracker.update(dict.fromkeys(tracker, value))


_MATTERS = (
    "seed_everything", "model", "data", "trainer.max_steps", "trainer.max_epochs", "trainer.precision",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "trainer.limit_train_batches", "trainer.overfit_batches", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.accelerator",
)  # fmt: skip
_MATTERS_NOT = (
    "model.evaluation", "model.metrics", "data.validation_batch_size", "data.validation_limit", "data.num_workers",
)  # fmt: skip


def differences(before: str | None, now: str | None) -> list[str]:
    """What differs between two configurations (YAML) that weights or the order of the data depend on."""
    if before is None or now is None:
        return []
    old, new = (dict(_flat(load(text))) for text in (before, now))
    names = [n for n in sorted(old.keys() | new.keys()) if _within(n, _MATTERS) and not _within(n, _MATTERS_NOT)]
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]


def warn_of_differences(before: str | None, now: str | None) -> None:
    """Names what differs; a resume with other settings is never silent."""
    try:
        changed = differences(before, now)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        rank_zero_warn(f"The configuration in the checkpoint cannot be compared, for it is no YAML: {error!s:.200}")
        return
    if changed:
        more = f", and {len(changed) - 8} more" if len(changed) > 8 else ""
        rank_zero_warn(f"The run goes on with other settings than before: {'; '.join(changed[:8])}{more}.")


def _within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config
