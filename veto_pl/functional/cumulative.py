"""Cumulative sums that are the same in every run, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

FIXED_POINT = 2.0**52
"""Parts of the sum of all magnitudes that are told apart: as many as float64 has whole numbers, with a bit to spare."""


def cumulative_sum(values: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    r"""Return :math:`s_k = \sum_{i \le k} x_i` along `dim`, in `dtype` or that of the values.

    An accelerator adds floating-point numbers in an order that differs from call to call, and raises where
    `torch.use_deterministic_algorithms` forbids that (`trainer.deterministic: true`). There, whole numbers are added,
    for which no order matters. Elsewhere it is `torch.cumsum`, to the bit.

    Example:
        >>> cumulative_sum(torch.tensor([1.0, 2.0, 4.0]))
        tensor([1., 3., 7.])
    """
    if not must_be_deterministic(values.device):
        return values.cumsum(dim, dtype=dtype)
    return sum_in_whole_numbers(values, dim).to(dtype or values.dtype)


def must_be_deterministic(device: torch.device) -> bool:
    """Return whether floating-point numbers may not be added in any order on a device that would do so.

    Example:
        >>> must_be_deterministic(torch.device("cpu"))
        False
    """
    return device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def sum_in_whole_numbers(values: Tensor, dim: int) -> Tensor:
    """Return the cumulative sums in float64, exact to 2^-52 of the sum of all magnitudes; equal ones stay equal.

    Example:
        >>> sum_in_whole_numbers(torch.tensor([0.25, 0.0, 0.5]), 0)
        tensor([0.2500, 0.2500, 0.7500], dtype=torch.float64)
    """
    magnitude = values.abs().sum(dim, keepdim=True, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
    parts = (values.double() / magnitude * FIXED_POINT).round().long()
    return parts.cumsum(dim).double() / FIXED_POINT * magnitude
