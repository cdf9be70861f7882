"""Fake tensors are on the CPU; here their computation takes the ways that an accelerator's takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from veto_pl.functional import panel_stream
from veto_pl.module import DistillationModule
from veto_pl.training.optimizer_groups import make_optimizer


@contextmanager
def as_on_an_accelerator(accelerator: bool) -> Iterator[None]:
    """Let the loss head work on whole chunks, and attention with dropout keep no [W, W] tensor.

    An accelerator's kernels of attention have dropout, and a CPU's do not.
    """
    blocks, attend = panel_stream.BLOCK_ELEMENTS, functional.scaled_dot_product_attention

    def without_dropout(*tensors: Any, dropout_p: float = 0.0, **settings: Any) -> Any:
        return attend(*tensors, **settings)

    if accelerator:
        panel_stream.BLOCK_ELEMENTS, functional.scaled_dot_product_attention = sys.maxsize, without_dropout
    try:
        yield
    finally:
        panel_stream.BLOCK_ELEMENTS, functional.scaled_dot_product_attention = blocks, attend


def optimizer_of(module: DistillationModule, student: nn.Module, accelerator: bool) -> Optimizer:
    """Return the run's optimizer; on an accelerator it updates all weights at once (`foreach`) by default."""
    trained = [(f"student.{name}", weight) for name, weight in student.named_parameters() if weight.requires_grad]
    optimizer = make_optimizer(module.optimizer, trained)
    for group in optimizer.param_groups:
        if accelerator and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True
    return optimizer
