"""Where a stopped run goes on: between two accumulation windows, whenever its checkpoint was written.

Weights, optimizer and schedule change at optimizer steps only, and no random generator has a state. So inside a window
the state is that of the window's beginning: a checkpoint names this point, and a resumed run repeats the micro-batches
after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.storage.config_files import load

PROGRESS = "veto_pl_progress"
"""The key under which a checkpoint holds a `ResumePoint`, and the row that the next batch begins with."""


@dataclass(frozen=True)
class ResumePoint:
    """A point between two accumulation windows.

    Args:
        epoch: complete epochs.
        batches: micro-batches of the next epoch that are done.
        total: micro-batches of the whole run that are done.
        rows: rows of each journal.
        validation_due: if a validation follows the last micro-batch, it has not been completed.
    """

    epoch: int
    batches: int
    total: int
    rows: Mapping[str, int]
    validation_due: bool = False

    @classmethod
    def read(cls, progress: Mapping[str, Any]) -> ResumePoint:
        """Return the point that a checkpoint holds under `PROGRESS`; keys of earlier versions are ignored."""
        return cls(**{field.name: progress[field.name] for field in fields(cls)})

    def advanced(self, trainer: L.Trainer, rows: Mapping[str, int], *, validation_due: bool = False) -> ResumePoint:
        """Return the point after the micro-batches that are done by now; their window must be over."""
        epochs: Any = trainer.fit_loop.epoch_progress.current
        progress = trainer.fit_loop.epoch_loop.batch_progress
        total, done = cast(Any, progress.total).processed, cast(Any, progress.current)
        # Where `max_steps` ends an epoch early, Lightning counts it as complete; a longer run goes on inside it.
        is_last = progress.is_last_batch and done.ready == done.processed
        if epochs.processed > self.epoch and (is_last or done.processed >= trainer.num_training_batches):
            return ResumePoint(epochs.processed, 0, total, rows)
        return ResumePoint(self.epoch, done.processed, total, rows, validation_due)

    @property
    def place(self) -> tuple[int, int, bool]:
        """Epoch, batches and `validation_due`, which are equal for points with equal state."""
        return self.epoch, self.batches, self.validation_due


def place_loops(loops: dict[str, Any], point: ResumePoint, step: int) -> None:
    """Set the progress in a checkpoint's `fit_loop` entry to a point, in the form that Lightning resumes exactly.

    Args:
        loops: as Lightning wrote it, at whatever moment; changed in place.
        point: where to go on.
        step: optimizer steps that are done.
    """
    begun = point.epoch + (point.batches > 0)
    for tracker in loops["epoch_progress"].values():
        tracker.update(ready=begun, started=begun, processed=point.epoch, completed=point.epoch)
    progress = loops["epoch_loop.batch_progress"]
    for tracker, value in ((progress["total"], point.total), (progress["current"], point.batches)):
        tracker.update(dict.fromkeys(tracker, value))
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for tracker in (validation["total"], validation["current"]):
        tracker.update(dict.fromkeys(tracker, 0))
    validation["is_last_batch"] = False
    if point.validation_due:  # one batch begun and not finished is how Lightning knows that it has to validate
        validation["total"].update(ready=1, started=1)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - point.validation_due


def place_data(trainer: L.Trainer, point: ResumePoint, row: int, start_at: Callable[[int, int], int] | None) -> None:
    """Begin the present epoch at a row, and count the micro-batches before it as the present batch size and ranks do.

    Args:
        trainer: has restored its loops and made its loaders.
        point: where to go on.
        row: the row of the epoch's order that comes next.
        start_at: given an epoch and a row, lets the data begin there and returns the micro-batches before it; None for
            data that cannot.
    """
    loop, batches = trainer.fit_loop, float(point.batches)
    if start_at is not None:
        batches = start_at(point.epoch, row)
        if batches >= trainer.num_training_batches:  # also where a limit cuts the epoch
            start_at(point.epoch, sys.maxsize)
        iter(cast(Iterator[Any], loop._data_fetcher))  # what workers may have fetched already is of another place
    progress = loop.epoch_loop.batch_progress
    batches = min(batches, trainer.num_training_batches)
    progress.current.__dict__.update(dict.fromkeys(vars(progress.current), int(batches)))
    progress.is_last_batch = 0 < batches == trainer.num_training_batches


def begin_window(trainer: L.Trainer) -> None:
    """Reset Lightning's log, so that a resumed run logs a window as a run that was not stopped does.

    Lightning counts the last step before a stop again or not, depending on the validation after it; and it logs the
    value of an earlier step again where a step has none.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = trainer.global_step
    for name in [name for name, result in loop._results.items() if not result.meta.on_epoch]:
        del loop._results[name]


_COMPARED = (
    "seed_everything", "model", "data", "trainer.max_steps", "trainer.max_epochs", "trainer.precision",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "trainer.limit_train_batches", "trainer.overfit_batches", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.accelerator",
)  # fmt: skip
_NOT_COMPARED = (
    "model.evaluation", "model.evaluation_rollout",
    "model.metrics", "data.validation_batch_size", "data.validation_limit", "data.num_workers",
)  # fmt: skip


def differences(before: str | None, now: str | None) -> list[str]:
    """Return the differences between two configurations (YAML) that change weights or the order of the data."""
    if before is None or now is None:
        return []
    old, new = (dict(_flat(load(text))) for text in (before, now))
    names = [n for n in sorted(old.keys() | new.keys()) if _within(n, _COMPARED) and not _within(n, _NOT_COMPARED)]
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]


def warn_of_differences(before: str | None, now: str | None) -> None:
    """Warn of the differences between a checkpoint's configuration and the present one, both YAML."""
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
