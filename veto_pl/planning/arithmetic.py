"""Floating-point operations of an optimizer step on one device, and how long a known device takes for them."""

from __future__ import annotations

from dataclasses import dataclass

from veto_pl.planning.devices import Device
from veto_pl.planning.simulation import PHASES, PRECISIONS, Setting, Simulated

SHARE = 0.4
"""The part of a device's peak that training usually reaches."""


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

    Sampling takes at least as long as reading the weights of the sampling models once for each token of a row.
    """
    peak = device.half if _is_half(setting) else device.single
    parts = []
    for name in PHASES:
        part = simulated.phases.get(name)
        if part is None or name == "validation":
            continue
        flops = part.flops * (1 if name == "optimizer step" else setting.accumulate)
        seconds = None if peak is None else flops / (peak * share)
        if seconds is not None and name == "rollout" and device.bandwidth:
            seconds = max(seconds, simulated.reads * setting.accumulate / (device.bandwidth * share))
        parts.append(Work(name, flops, seconds))
    return parts


def _is_half(setting: Setting) -> bool:
    weights, computed = PRECISIONS[setting.precision]
    return (computed or weights) is not None and setting.precision not in ("64", "64-true")
