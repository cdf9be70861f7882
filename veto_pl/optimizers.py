"""The optimizer that a module has by default, and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    """Returns AdamW at a rate that fine-tuning bears, without weight decay."""
    return AdamW(parameters, lr=1e-5, weight_decay=0.0)


def set_rate(optimizer: Optimizer, rate: float | None) -> None:
    """Gives an optimizer another learning rate, from which a schedule starts; None leaves it as it is."""
    for group in optimizer.param_groups if rate is not None else ():
        group["lr"] = group["initial_lr"] = rate


def start_from(schedule: LambdaLR, rate: float) -> None:
    """Gives a schedule and its optimizer another learning rate."""
    set_rate(schedule.optimizer, rate)
    schedule.base_lrs = [rate for _ in schedule.optimizer.param_groups]
