"""The optimizer of a module: what makes it, its schedule, and a learning rate that may be found or replaced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import lightning as L
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from veto_pl.core.mistakes import wrong_kind
from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.trainable import warn_of_lost_steps
from veto_pl.seams import Schedule
from veto_pl.training.optimizer_groups import default_optimizer, make_optimizer

__all__ = ["OptimizedModule", "default_optimizer", "unlimited"]


def unlimited() -> float:
    """Return infinity, the number of steps of a run that no budget ends."""
    return math.inf


class OptimizedModule(OwnErrors, L.LightningModule):
    """A module whose optimizer is made by `optimizer`, at a rate that `lr_schedule` multiplies at every step.

    Args:
        optimizer: makes the optimizer of the weights that are trained. Where its first parameter is called
            `named_parameters`, it is given pairs of name and weight, else weights.
        lr_schedule: multiplies the optimizer's learning rate at every step.
    """

    student: nn.Module

    def __init__(self, optimizer: OptimizerCallable, lr_schedule: Schedule) -> None:
        super().__init__()
        for setting, given in (("model.optimizer", optimizer), ("model.lr_schedule", lr_schedule)):
            if not callable(given):
                raise wrong_kind(given, setting, "a function or part that is called, such as a class of torch.optim")
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.horizon: Callable[[], float] = unlimited
        self._rate: float | None = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over the trained parameters, and its schedule per step."""
        trained = [(name, weight) for name, weight in self.named_parameters() if weight.requires_grad]
        optimizer = make_optimizer(self.optimizer, trained)
        if self._rate is not None:
            _set_rate(optimizer, self._rate)
        warn_of_lost_steps(optimizer.param_groups)
        schedule = LambdaLR(optimizer, lambda step: self.lr_schedule(step, self.total_steps()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def lr(self) -> float | None:
        """The learning rate that replaces the optimizer's own; None for that. Lightning's finder sets it."""
        return self._rate

    @lr.setter
    def lr(self, rate: float) -> None:
        """Set the learning rate, also in a schedule that runs already."""
        self._rate = rate
        for config in () if self._trainer is None else self.trainer.lr_scheduler_configs:
            schedule = cast(LambdaLR, config.scheduler)
            _set_rate(schedule.optimizer, rate)
            schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]

    def total_steps(self) -> int:
        """Return the optimizer steps of the run, over which schedules are stretched.

        Raises:
            ConfigurationError: nothing ends the run.
        """
        total = min(self.trainer.estimated_stepping_batches, self.horizon())
        if not math.isfinite(total):
            raise ConfigurationError(
                "Schedules need the length of the run, but it is unlimited. Set `trainer.max_steps` or "
                "`trainer.max_epochs`; beside a `budget`, as many as it will never reach."
            )
        return int(total)


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the first group, from which a schedule starts too; the others keep their ratio to it."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    for group, own in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = group["initial_lr"] = rate * (own / rates[0] if rates[0] else 1.0)
