"""Samplers: which rows a rank reads, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Step

T = TypeVar("T")


class RankSampler(DistributedSampler[Any], SequentialSampler):
    """One global order per epoch, dealt out like cards: rank r takes the items r, r + world, r + 2 world, ...

    The order depends on (seed, epoch, length) and not on the number of ranks, so every world size sees the same rows in
    the same order. It is a `DistributedSampler` by type, so that Lightning keeps it and tells it the epoch, and a
    `SequentialSampler`, so that Lightning keeps it with `overfit_batches` as well.

    Args:
        length: number of rows.
        rank: this process among the data-parallel ones.
        world_size: number of data-parallel processes.
        seed: the order's seed.
        shuffle: a new order every epoch; else the rows' own order.
        even: drop the last incomplete round, so that all ranks get the same number of rows.

    Raises:
        ConfigurationError: for a rank outside [0, world_size).

    Example:
        >>> [list(RankSampler(5, rank, 2, shuffle=False)) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
        >>> [list(RankSampler(5, rank, 2, shuffle=False, even=True)) for rank in range(2)]
        [[0, 2], [1, 3]]
    """

    def __init__(
        self, length: int, rank: int = 0, world_size: int = 1, seed: int = 0, shuffle: bool = True, even: bool = False
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigurationError(f"`RankSampler.rank` must lie in [0, {world_size}), got {rank}.")
        rows = cast("Dataset[Any]", range(length))
        super().__init__(rows, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed, drop_last=even)
        self.length = length
        self._start = (0, 0)

    def start_at(self, epoch: int, row: int) -> int:
        """Begin `epoch` at `row` of the global order, which is dealt out from there; return the number of this rank's
        rows.
        """
        self._start = (epoch, row)
        self.set_epoch(epoch)
        return len(self._positions(row))

    def batches_before(self, epoch: int, row: int, batch_size: int) -> int:
        """Begin `epoch` at `row`, and return how many batches of this size the epoch has before those that are left."""
        left = self.start_at(epoch, min(row, self.length))
        return math.ceil(len(self) / batch_size) - math.ceil(left / batch_size)

    def __iter__(self) -> Iterator[int]:
        epoch, row = self._start
        positions = self._positions(row if epoch == self.epoch else 0)
        order = self.order()
        if order is None:
            return iter(positions)
        own = order[positions.start : positions.stop : positions.step]
        return chain.from_iterable(part.tolist() for part in torch.split(own, 4096))

    def order(self) -> Tensor | None:
        """Return the global order of the epoch, [length] int64; None for the rows' own."""
        if not self.shuffle:
            return None
        generator = Step(index=self.epoch, total=0, seed=self.seed).generator("data order", shared=True)
        return torch.randperm(self.length, generator=generator)

    def __len__(self) -> int:
        """Return the rows of a whole epoch, wherever this one begins."""
        return len(self._positions(0))

    def _positions(self, start: int) -> range:
        dropped = (self.length - start) % self.num_replicas if self.drop_last else 0
        return range(start + self.rank, self.length - dropped, self.num_replicas)


def even_batches(rows: Sequence[T], rank: int, world_size: int, batch_size: int) -> list[Sequence[T]]:
    """Return this rank's batches for evaluation: every row on exactly one rank, and as many batches on every rank.

    Ranks may differ by one row. Where that would cost a rank its last batch, the batch before gives one row to it:
    repeated rows would bias a metric, dropped rows would make it depend on the world size, and ranks that run different
    numbers of batches wait for each other forever in the first collective.

    Raises:
        ConfigurationError: where the rows are too few for that.

    Example:
        >>> [even_batches(list(range(5)), rank, 2, 2) for rank in range(2)]
        [[[0, 2], [4]], [[1], [3]]]
    """
    own = rows[rank::world_size]
    batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
    uneven = len(rows) % world_size > 0
    if uneven and min(batch_size - 1, len(rows) // world_size) == 0:
        raise ConfigurationError(
            f"{len(rows)} evaluation rows in batches of {batch_size} cannot give each of {world_size} ranks equally "
            "many batches. Set a larger batch size, or a limit that the ranks divide."
        )
    most = -(-len(rows) // world_size)
    if len(batches) < -(-most // batch_size):
        batches[-1:] = [batches[-1][:-1], batches[-1][-1:]]
    return batches
