"""Collectives over the ranks, and how the ranks share a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum over all ranks, without a graph; the value itself where there is one rank.

    Collective: call it on every rank.

    Every rank has to ask, equally often.
    """
    if rank_and_size()[1] == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def gather_on_first(value: T) -> list[T] | None:
    """Return the values of all ranks, in the order of ranks, on rank 0, and None on the others.

    Collective: call it on every rank. Values are pickled.
    """
    rank, world_size = rank_and_size()
    if world_size == 1:
        return [value]
    gathered: list[T] | None = [value] * world_size if rank == 0 else None
    dist.gather_object(value, gathered)
    return gathered


@dataclass(frozen=True)
class Sharding:
    """How the ranks share a model.

    Args:
        mesh: the ranks, in one dimension.
        device: where this rank keeps its part.
        whole_to_sample: gather all weights before a rollout and let them go afterwards. Sampling then needs no
            communication. Otherwise every layer is gathered for every token, in step with the other ranks.
        compute_dtype: in which weights are gathered and computed with, while parts, and the sums of gradients over the
            ranks, keep the dtype of the weights; None gathers them as they are.
    """

    mesh: DeviceMesh
    device: torch.device
    whole_to_sample: bool
    compute_dtype: torch.dtype | None = None

    @property
    def first(self) -> bool:
        """Whether this is the first rank."""
        return int(self.mesh.get_local_rank()) == 0

    def part(self, length: int) -> slice:
        """Return the rows of a tensor of `length` rows that this rank keeps, cut as FSDP2 cuts them."""
        size = -(-length // self.mesh.size())
        start = min(self.mesh.get_local_rank() * size, length)
        return slice(start, min(start + size, length))

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank. Collective: call it on every rank."""
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.mesh.get_group())
        return bool(votes)
