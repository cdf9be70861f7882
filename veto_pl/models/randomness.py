"""Random numbers of code that only knows the global generators: dropout, and sampling by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from veto_pl.seams import Step


@contextmanager
def global_draws(step: Step, purpose: str, device: torch.device) -> Iterator[None]:
    """Seed the global generators from step, micro-batch, rank and purpose for a block, then restore them.

    So there is nothing to save: a run that is resumed draws what it would have drawn.
    """
    seed = step.generator(purpose).initial_seed()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
