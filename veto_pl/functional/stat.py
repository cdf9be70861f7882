"""A weighted sum that has not been divided yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stat:
    r"""A weighted sum that has not been divided yet: it adds over chunks, micro-batches and ranks.

    Args:
        total: scalar, :math:`\sum_i w_i x_i`; carries the graph if it is a loss.
        weight: scalar, :math:`\sum_i w_i`.

    Example:
        >>> (Stat(torch.tensor(6.0), torch.tensor(2.0)) + Stat(torch.tensor(3.0), torch.tensor(1.0))).mean()
        tensor(3.)
    """

    total: Tensor
    weight: Tensor

    def __add__(self, other: Stat) -> Stat:
        return Stat(self.total + other.total, self.weight + other.weight)

    def scaled(self, coefficient: float) -> Stat:
        """Return the same weight with `coefficient` times the total."""
        return Stat(self.total * coefficient, self.weight)

    def detach(self) -> Stat:
        """Return the same numbers without the graph."""
        return Stat(self.total.detach(), self.weight.detach())

    def mean(self) -> Tensor:
        """Return `total / weight`, and 0 (still connected to the graph) where the weight is 0."""
        return self.total / torch.where(self.weight == 0, 1.0, self.weight)
