"""Numbers that all ranks share."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all processes of the run, without a graph; the value itself where there is one process.

    Every rank has to ask, equally often.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed
