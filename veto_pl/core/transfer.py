"""Numbers that go from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor

UNPINNED = ("cpu", "mps", "meta")
"""Devices that need no memory of the host to be locked, or cannot use it."""


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on `device`; those of the host by way of pinned memory, so that it does not wait."""
    if device.type in UNPINNED or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
