"""Floating-point operations of an optimizer step on one device, and how long a known device takes for them."""

from __future__ import annotations

from dataclasses import dataclass

from veto_pl.planning.devices import Device
from veto_pl.planning.simulation import PHASES, Setting, Simulated

SHARE = 0.4
"""The part of a device's peak that training usually reaches."""


PER_STEP = ("rollout", "optimizer step")
"""Parts that are simulated for a whole optimizer step; the others repeat in every micro-batch."""


@dataclass(frozen=True)
class Work:
    """One part of an optimizer step, over all its micro-batches.

    Args:
        phase: the part.
        flops: floating-point operations; a multiplication with an addition counts as two.
        seconds: at the stated share of the device's peak, or None where the device's figures are not known.
    """

    phase: str
    flops: float
    seconds: float | None


def step_work(simulated: Simulated, setting: Setting, device: Device, share: float = SHARE) -> list[Work]:
    """Return the work of each part of an optimizer step, in their order; validation is not included.

    Products take the rate of the dtype that they are computed in: that of the weights, or autocast's. Sampling takes at
    least as long as reading the weights of the sampling models once for each token of a row, and as starting the
    kernels of each token.
    """
    parts = []
    for name in PHASES:
        part = simulated.phases.get(name)
        if part is None or name == "validation":
            continue
        flops = part.flops * (1 if name in PER_STEP else setting.accumulate)
        seconds = _seconds(flops, part.half_share, device, share)
        if seconds is not None and name == "rollout":
            read = simulated.reads / (device.bandwidth * share) if device.bandwidth else 0.0
            seconds = max(seconds, read, part.kernels * (device.launch or 0.0))
        parts.append(Work(name, flops, seconds))
    return parts


def _seconds(flops: float, half_share: float, device: Device, share: float) -> float | None:
    if device.half is None or device.single is None:
        return None
    return flops * (half_share / device.half + (1 - half_share) / device.single) / share
