"""Modes in which a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from veto_pl.seams import LanguageModel


@contextmanager
def sampling_mode(model: LanguageModel) -> Iterator[None]:
    """Without dropout, gradients and activation checkpointing; each module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
