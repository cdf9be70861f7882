"""Modes in which a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from veto_pl.seams import LanguageModel


@contextmanager
def sampling_mode(model: LanguageModel) -> Iterator[None]:
    """Run the block without dropout, gradients and activation checkpointing, then restore each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
