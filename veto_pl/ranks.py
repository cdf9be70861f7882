"""Numbers that all ranks share."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This rank, and how many there are; (0, 1) without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all processes of the run, without a graph; the value itself where there is one process.

    Every rank has to ask, equally often.
    """
    if place()[1] == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def gather_on_first(value: T) -> list[T] | None:
    """The values of all ranks, in their order, on the first one; None on the others. Every rank has to ask."""
    rank, world_size = place()
    if world_size == 1:
        return [value]
    gathered: list[T] | None = [value] * world_size if rank == 0 else None
    dist.gather_object(value, gathered)
    return gathered
