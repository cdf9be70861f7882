"""Modes in which a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from veto_pl.seams import LanguageModel


@contextmanager
def sampling_mode(model: LanguageModel) -> Iterator[None]:
    """Run the block without dropout, gradients and activation checkpointing, then restore each module's own mode.

    Under autocast weights are cast once in the block, and not for every token.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), model.present(), _casts_kept(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _casts_kept(model: LanguageModel) -> Iterator[None]:
    """Let autocast, where it is on, keep the weights that it casts until the end of the block; it keeps their values.

    Lightning forbids it, because what is cast without a graph would be used again with one. So all casts are forgotten
    in the end. Autocast keeps casts of trained weights only, so the frozen ones of a teacher or behind an adapter seem
    to be trained meanwhile; nothing in the block has a graph.
    """
    device_type = next((weight.device.type for weight in model.parameters()), "cpu")
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    frozen = [weight for weight in model.parameters() if weight.is_floating_point() and not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.autocast(device_type, torch.get_autocast_dtype(device_type), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()
        for weight in frozen:
            weight.requires_grad_(False)
