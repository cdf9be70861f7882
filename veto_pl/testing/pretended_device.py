"""A device of this process alone, by which torch knows the pretended GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "gpu"
"""What `torch.device` calls it. Torch lets a process have one device that it does not know."""


def register_device() -> None:
    """Make the device known to torch, once in a process."""
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    class Answers(_DummyBackendModule):
        """What `torch.gpu` answers to those who ask a device about itself."""

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            """Return the dtypes of autocast."""
            return [torch.bfloat16, torch.float16]

        def get_rng_state(self, device: Any = None) -> Tensor:
            """Return the host's state: numbers of the pretended device are drawn there."""
            return torch.get_rng_state()

        def set_rng_state(self, state: Tensor, device: Any = None) -> None:
            """Set the host's state."""
            torch.set_rng_state(state)

    _setup_privateuseone_for_python_backend(NAME, backend_module=Answers())
    # As under fake tensors: what is made of numbers is made on the host and then copied.
    torch._C._set_only_lift_cpu_tensors(True)
    # Else tied weights would come apart when they go back to the host.
    torch.__future__.set_swap_module_params_on_conversion(True)


def on_device(value: Any) -> bool:
    """Return whether a value is a tensor, or names a place, that is not the host's."""
    device = value.device if isinstance(value, Tensor) else value
    return isinstance(device, torch.device) and device.type == NAME
