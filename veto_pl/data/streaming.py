"""Encoded rows of a stream: read, tokenised and dealt out as they are needed, and kept nowhere.

Every rank reads and tokenises the whole stream and takes its share of the rows, so that all ranks agree on which row is
which, whatever is skipped or dropped on the way.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset, DistributedSampler

from veto_pl.data.collate import Collator, Encoded
from veto_pl.data.turns import check_agreement
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

T = TypeVar("T")
_BLOCK = 64
"""Rows that are tokenised together."""


class SampledItems(Dataset[Encoded]):
    """The data set of a loader whose sampler hands out the rows themselves."""

    def __getitem__(self, row: Encoded) -> Encoded:
        return row


@dataclass(frozen=True)
class EncodedStream:
    """Encoded rows of unknown number.

    Args:
        examples: gives the examples anew each time that it is iterated.
        collator: encodes them.
        policies: what judges the rows one by one, and leaves some out or changes them.
        buffer: examples among which the next one is drawn where they are shuffled.
    """

    examples: Iterable[Example]
    collator: Collator
    policies: tuple[Callable[[Iterable[Encoded]], Iterator[Encoded]], ...]
    buffer: int

    def __post_init__(self) -> None:
        if iter(self.examples) is self.examples:
            raise ConfigurationError(
                "The task gave a generator, which can be read once only. Give it a new one for each epoch, by "
                "`ExampleStream(function)`."
            )

    @property
    def dataset(self) -> Dataset[Encoded]:
        """The data set from which a loader reads the rows of the order."""
        return SampledItems()

    @property
    def summary(self) -> dict[str, Any]:
        """What a checkpoint says about these rows."""
        return {"count": None, "fingerprint": str(getattr(self.examples, "fingerprint", ""))}

    @property
    def origin(self) -> str:
        """Where the rows come from, for messages."""
        return str(getattr(self.examples, "origin", "The stream of the task"))

    def order(self, rank: int, world_size: int, *, seed: int, shuffle: bool) -> StreamOrder:
        """Return the order in which a rank reads the rows in training."""
        return StreamOrder(self, rank, world_size, seed, shuffle)

    def rows(self, generator: torch.Generator | None) -> Iterator[Encoded]:
        """Yield all rows in the stream's order, or in the one that a generator draws."""
        numbered: Iterable[tuple[int, Example]] = enumerate(self.examples)
        if generator is not None:
            numbered = shuffled(numbered, self.buffer, generator)
        return reduce(lambda rows, fit: fit(rows), self.policies, self._encoded(numbered))

    def listed(self, split: str) -> NoReturn:
        """Raise `DataError`, for `split` is needed as a sequence."""
        raise DataError(
            f"{self.origin}: a stream has no length, which is needed for the rows of `{split}` here. Set a limit, or "
            "let the task return a list."
        )

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise `ConfigurationError` for settings of a trainer that need the number of rows."""
        says = f"{self.origin}: a stream has no length, "
        if trainer.max_steps < 0:
            raise ConfigurationError(f"{says}so that of the run is unknown. Set `trainer.max_steps`.")
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ConfigurationError(f"{says}so `trainer.overfit_batches` cannot be used. Set `data.train_limit`.")
        for name in ("limit_train_batches", "val_check_interval"):
            value = getattr(trainer, name)
            if isinstance(value, float) and value not in (0.0, 1.0):
                raise ConfigurationError(f"{says}so `trainer.{name}` expected a number of batches, got {value}.")

    def _encoded(self, numbered: Iterable[tuple[int, Example]]) -> Iterator[Encoded]:
        for block in in_chunks(numbered, _BLOCK):
            examples = [example for _, example in block]
            check_agreement(examples)
            yield from self.collator.encode(examples, [number for number, _ in block])


class StreamOrder(DistributedSampler[Any]):
    """The rows of a stream, dealt out as `RankSampler` deals out places; the rows themselves are its items.

    Args:
        stream: the rows.
        rank: this process among the data-parallel ones.
        world_size: number of data-parallel processes.
        seed: the order's seed.
        shuffle: draw a new order every epoch; else the stream's own order.
    """

    length = sys.maxsize  # as far as anybody knows

    def __init__(self, stream: EncodedStream, rank: int, world_size: int, seed: int, shuffle: bool) -> None:
        none = cast("Dataset[Any]", range(0))
        super().__init__(none, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self.stream = stream
        self._start = (0, 0)

    def batches_before(self, epoch: int, row: int, batch_size: int) -> int:
        """Begin `epoch` at a row, and return how many batches of this size come before it."""
        self._start = (epoch, row)
        self.set_epoch(epoch)
        return math.ceil(row / (batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[Encoded]:
        epoch, row = self._start
        first = row if epoch == self.epoch else 0
        if first == self.length:
            return
        step = Step(index=self.epoch, total=0, seed=self.seed)
        generator = step.generator("data order", shared=True) if self.shuffle else None
        empty = True
        for dealt in in_chunks(islice(self.stream.rows(generator), first, None), self.num_replicas):
            if len(dealt) == self.num_replicas:  # as `even` does for a `RankSampler`
                empty = False
                yield dealt[self.rank]
        if empty:
            self._report_the_end(first)

    def __len__(self) -> int:
        raise TypeError("A stream has no length.")

    def _report_the_end(self, first: int) -> None:
        if first == 0:
            raise DataError(
                f"{self.stream.origin}: no rows for the split `train`, expected at least one for each of "
                f"{self.num_replicas} ranks. It is empty or blank, or everything was left out."
            )
        rank_zero_warn(f"{self.stream.origin}: ended before row {first + 1}, where the run was stopped.")


def shuffled(items: Iterable[T], size: int, generator: torch.Generator) -> Iterator[T]:
    """Yield the items, each drawn from the `size` that are next; fewer items than that are shuffled completely.

    Example:
        >>> sorted(shuffled(range(10), 4, torch.Generator()))
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    buffer: list[T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = int(torch.randint(size, (), generator=generator))
        yield buffer[place]
        buffer[place] = item
    yield from (buffer[place] for place in torch.randperm(len(buffer), generator=generator).tolist())


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`; the last one may be shorter.

    Example:
        >>> list(in_chunks("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
