"""The numbers that the trainer and Lightning's callbacks take, and what each may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from veto_pl.checks.setup import RunSetup
from veto_pl.core.mistakes import Mistake

PROCESSES = 2**16
"""More processes than any run has; their numbers are handled in 32 bits."""

ROWS = 2**31
"""More rows than any batch has."""


@dataclass(frozen=True)
class Allowed:
    """What a number may be.

    Args:
        least: the smallest value.
        most: the largest one.
        whole: only whole numbers.
        share: also a share, above 0 and up to 1.0, of what there is.
        also: values with a meaning of their own.
        stage: the command that it matters to; None for all.
        remedy: what to do.
    """

    least: float
    most: float = math.inf
    whole: bool = True
    share: bool = False
    also: tuple[int, ...] = ()
    stage: str | None = None
    remedy: str = "Correct it."

    def admits(self, value: float) -> bool:
        """Return whether the value is allowed; NaN is not."""
        if self.share and isinstance(value, float):
            return 0 < value <= 1 or (value >= self.least and value % 1 == 0)
        return value in self.also or self.least <= value <= self.most

    def __str__(self) -> str:
        size = "1 or more" if self.least == 1 else f"{self.least:g} or more"
        most = "" if self.most == math.inf else f" and at most {self.most:g}"
        share = ", or a share above 0 and up to 1.0" if self.share else ""
        return f"{'a whole number, ' if self.whole else ''}{size}{most}{share}" + "".join(
            f", or {value}" for value in self.also
        )


_MEASURE = "`veto-pl validate` and `veto-pl export` do not train."
TRAINER = {
    "devices": Allowed(1, PROCESSES, also=(-1,)),
    "num_nodes": Allowed(1, PROCESSES),
    "fast_dev_run": Allowed(0),
    "max_epochs": Allowed(1, also=(-1,), stage="fit", remedy=_MEASURE),
    "max_steps": Allowed(1, also=(-1,), stage="fit", remedy=_MEASURE),
    "min_epochs": Allowed(0),
    "min_steps": Allowed(0),
    "limit_train_batches": Allowed(1, share=True, stage="fit", remedy=_MEASURE),
    "limit_val_batches": Allowed(0, share=True),
    "limit_test_batches": Allowed(0, share=True),
    "limit_predict_batches": Allowed(0, share=True),
    "overfit_batches": Allowed(0, share=True),
    "val_check_interval": Allowed(1, share=True, remedy="`limit_val_batches: 0` switches validation off."),
    "check_val_every_n_epoch": Allowed(1, remedy="`limit_val_batches: 0` switches validation off."),
    "num_sanity_val_steps": Allowed(0, also=(-1,)),
    "log_every_n_steps": Allowed(0),
    "accumulate_grad_batches": Allowed(1),
    "gradient_clip_val": Allowed(0, whole=False, remedy="`null` or 0 switches clipping off."),
    "reload_dataloaders_every_n_epochs": Allowed(0),
}
"""Every argument of the trainer that can be a number."""

DATA = {
    "batch_size": Allowed(1, ROWS),
    "validation_batch_size": Allowed(1, ROWS),
    "num_workers": Allowed(0, PROCESSES),
}
"""Attributes of the data module that the loader cannot take at any size."""

CALLBACKS = {"patience": Allowed(0), "min_delta": Allowed(0, whole=False, remedy="It is the least improvement.")}
"""Attributes of callbacks that are numbers."""

_WORK_OF = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}


def of_the_trainer(setup: RunSetup) -> Iterator[Mistake]:
    """Check the ranges of the trainer's numbers, and that they leave a command something to do."""
    for name, allowed in TRAINER.items():
        if allowed.stage in (None, setup.stage):
            yield from _range_mistakes(setup.trainer.get(name), allowed, f"trainer.{name}")
    name = _WORK_OF.get(setup.stage, "")
    if setup.trainer.get(name) == 0:
        yield Mistake(f"trainer.{name}", "0", "more", f"Without rows `{setup.stage}` has nothing to do.")
    if setup.stage == "fit":
        yield from _time_mistakes(setup.trainer)


def of_the_data(setup: RunSetup) -> Iterator[Mistake]:
    """Check the ranges of the data module's sizes."""
    for name, allowed in DATA.items():
        yield from _range_mistakes(getattr(setup.data, name), allowed, f"data.{name}")


def of_the_callbacks(setup: RunSetup) -> Iterator[Mistake]:
    """Check the ranges of the callbacks' numbers."""
    for path, callback in setup.callbacks.items():
        for name, allowed in CALLBACKS.items():
            yield from _range_mistakes(_as_given(callback, name), allowed, f"{path}.{name}")


def _as_given(callback: Callback, name: str) -> Any:
    """Return a number of a callback as it was given; `EarlyStopping` turns `min_delta` round where less is better."""
    value: Any = getattr(callback, name, None)
    turned = name == "min_delta" and getattr(callback, "mode", "max") == "min" and isinstance(value, int | float)
    return -value if turned else value


def _range_mistakes(value: Any, allowed: Allowed, path: str) -> Iterator[Mistake]:
    """Yield a mistake if a number is not allowed; texts, lists and booleans are left to the trainer."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not allowed.admits(value):
        yield Mistake(path, f"{value}", str(allowed), allowed.remedy)


def _time_mistakes(trainer: Mapping[str, Any]) -> Iterator[Mistake]:
    """Check that `max_time` is above 0; the trainer itself refuses what cannot be read as a time."""
    given = trainer.get("max_time")
    try:
        seconds = Timer(duration=given).time_remaining()
    except (MisconfigurationException, TypeError, ValueError, OverflowError):
        return
    if seconds is not None and seconds <= 0:
        yield Mistake("trainer.max_time", f"`{given}`", "a time above 0", _MEASURE)
