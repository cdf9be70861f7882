"""A GPU that this machine does not have: runs go through as on one, or raise as on one, and what they ask is counted.

Tensors on it are on the CPU and say that they are not. What CUDA refuses is refused: tensors on two devices, generators
and numpy arrays of the host, products of integers, operations without a deterministic kernel. What CUDA would start is
counted, and so is every time that the host would wait. Speed, memory and rounding are the CPU's.

    device = pretended_gpu()
    trainer = Trainer(accelerator=PRETENDED, strategy=PRETENDED, devices=1)
    with counted() as work:
        trainer.fit(module, data)
    print(work.table())
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.utils import _foreach_utils

from veto_pl.testing.device_work import Work, counted
from veto_pl.testing.pretended_device import NAME, register_device
from veto_pl.testing.pretended_graph import register_recorder
from veto_pl.testing.pretended_kernels import register_kernels
from veto_pl.testing.pretended_tensor import PretendedTensor

__all__ = ["PRETENDED", "PretendedGPU", "PretendedTensor", "Work", "counted", "mixed_precision", "pretended_gpu"]

PRETENDED = "pretended_gpu"
"""The name of Lightning's `accelerator` and of its `strategy`; a run needs both."""


@cache
def pretended_gpu() -> torch.device:
    """Make the device known to torch and Lightning, for as long as this process lives, and return it.

    Call it before the first backward pass of the process, for there torch counts the devices once and for all.

    Raises:
        RuntimeError: there was a backward pass before.
    """
    from torch.optim.optimizer import _foreach_supported_types

    register_device()
    register_kernels()
    register_recorder()
    types: list[list[Any]] = [_foreach_utils._foreach_supported_types, _foreach_supported_types]
    for supported in types:
        supported.append(PretendedTensor)  # as for CUDA tensors, optimizers take all parameters at once
    AcceleratorRegistry.register(PRETENDED, PretendedGPU)
    StrategyRegistry.register(PRETENDED, SingleDeviceStrategy, device=f"{NAME}:0")
    device = torch.device(NAME, 0)
    try:
        torch.ones((), device=device, requires_grad=True).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise RuntimeError(
            "The pretended GPU came too late: this process had a backward pass before it. Call `pretended_gpu()` "
            "first, in a process of its own."
        ) from error
    return device


def mixed_precision() -> MixedPrecision:
    """Return the plugin for bf16-mixed, since Lightning's setting `precision` knows CUDA alone."""
    return MixedPrecision("bf16-mixed", NAME)


class PretendedGPU(Accelerator):
    """The accelerator of Lightning for the pretended GPU."""

    def setup_device(self, device: torch.device) -> None:
        """Do nothing: there is nothing to set up."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Return no statistics."""
        return {}

    def teardown(self) -> None:
        """Do nothing: there is nothing to give back."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        """Return the number of devices as it is given."""
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """Return the one device."""
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        """Return 1."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Return True: it is everywhere."""
        return True

    @staticmethod
    def name() -> str:
        """Return the name of the setting."""
        return PRETENDED
