"""What the usual devices can do. Figures are those of the vendors' data sheets, without sparsity."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from veto_pl.exceptions import ConfigurationError

GIB = 2**30
LAUNCH = 8e-6
"""Seconds from one kernel of eager PyTorch to the next, Python included: an estimate, within 6 to 12 microseconds."""


@dataclass(frozen=True)
class Device:
    """A device.

    Args:
        name: as `--device` takes it.
        memory: bytes that a program can see.
        half: dense matrix products in bfloat16 or float16, floating-point operations per second; None where unknown.
        single: the same in float32.
        bandwidth: bytes per second from its memory.
        launch: seconds that PyTorch takes to start a kernel, before anything is computed; None where unknown.
        accelerator: whether it is one.
    """

    name: str
    memory: int
    half: float | None = None
    single: float | None = None
    bandwidth: float | None = None
    launch: float | None = None
    accelerator: bool = True

    @property
    def reserve(self) -> int:
        """Bytes that a run cannot have: the driver's context, and a twentieth that fragmentation costs."""
        return int(0.6 * GIB + 0.05 * self.memory) if self.accelerator else 0


def _gpu(name: str, gib: float, half: float, single: float, bandwidth: float) -> Device:
    return Device(name, int(gib * GIB), half * 1e12, single * 1e12, bandwidth * 1e12, LAUNCH)


DEVICES = {
    device.name: device
    for device in (
        _gpu("H100-80GB", 79.1, 989, 67, 3.35),
        _gpu("H200", 139.8, 989, 67, 4.8),
        _gpu("A100-80GB", 79.2, 312, 19.5, 2.04),
        _gpu("A100-40GB", 39.4, 312, 19.5, 1.56),
        _gpu("L40S", 44.4, 362, 91.6, 0.86),
        _gpu("RTX-4090", 23.5, 165, 82.6, 1.01),
    )
}
"""By name. Memory is what is left after error correction; H100, H200 and A100 are the SXM models."""


def device(name: str | None = None, memory: float | None = None) -> Device:
    """Return the named device, or that of this machine.

    Args:
        name: a name of `DEVICES`, or `CPU`; None takes this machine's first GPU, or its CPU.
        memory: GiB, instead of what the device has.

    Raises:
        ConfigurationError: the name is not known, or the memory is not positive.
    """
    if memory is not None and not memory > 0:
        raise ConfigurationError(f"`--memory` must be positive, in GiB, got {memory:g}.")
    found = {known.lower(): entry for known, entry in DEVICES.items()}.get((name or "").lower())
    if found is None and name is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = Device(properties.name, properties.total_memory)
    if found is None:
        if name is not None and name.upper() != "CPU":
            raise ConfigurationError(
                f"`--device` must be one of {', '.join([*DEVICES, 'CPU'])}, got {name!r}. State another one's memory "
                "with `--memory` and leave `--device` out."
            )
        found = Device("CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), accelerator=False)
    if memory is None:
        return found
    return replace(found, memory=int(memory * GIB))
