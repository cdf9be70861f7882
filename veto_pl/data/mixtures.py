"""Several data sets as one: their rows one behind the other, and an order that reads them by their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from veto_pl.data.example_rows import batches, rows_at
from veto_pl.data.fingerprints import digest
from veto_pl.data.sampler import RankSampler
from veto_pl.exceptions import DataError
from veto_pl.seams import Example, Step

Places = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Ingredient:
    """A data set of a mixture.

    Args:
        name: of the set.
        examples: its rows, or a stream of them.
        weight: its share of the training rows, relative to the others'; None for its number of rows.
        teacher: the teacher of rows that name none.
    """

    name: str
    examples: Any
    weight: float | None = None
    teacher: str = ""

    def named(self, example: Example) -> Example:
        """Return an example with the names of set and teacher."""
        return replace(example, source=self.name, teacher=example.teacher or self.teacher)


def origins(parts: Iterable[Ingredient]) -> str:
    """Return where the rows of several data sets come from, for messages."""
    return ", ".join(str(getattr(part.examples, "origin", part.name)) for part in parts)


@dataclass(frozen=True, eq=False)
class MixedExamples(Sequence[Example]):
    """The rows of several data sets, one set behind the other.

    Args:
        parts: with sequences of rows.
    """

    parts: tuple[Ingredient, ...]

    @property
    def ends(self) -> Places:
        """Where each set ends, [sets] int64."""
        return np.cumsum([len(part.examples) for part in self.parts], dtype=np.int64)

    @property
    def key(self) -> str | None:
        """A name of the contents; None where that of a set is not known."""
        keys = [getattr(part.examples, "key", None) for part in self.parts]
        told = [f"{part.name} {part.teacher} {key}" for part, key in zip(self.parts, keys, strict=True)]
        return None if None in keys else digest("mixed", *told)

    @property
    def pictures(self) -> str | None:
        """A name of the contents of the image files; None where no set has images."""
        told = [getattr(part.examples, "pictures", None) for part in self.parts]
        return digest("mixed", *map(str, told)) if any(told) else None

    @property
    def origin(self) -> str:
        """Where the rows come from, for messages."""
        return origins(self.parts)

    def __len__(self) -> int:
        return sum(len(part.examples) for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if not isinstance(index, slice):
            return self.at([range(len(self))[index]])[0]
        places = range(len(self))[index]
        return self._first(len(places)) if places == range(len(places)) else self.at(places)

    def __iter__(self) -> Iterator[Example]:
        return chain.from_iterable(self.at(part) for part in batches(len(self)))

    def at(self, places: Sequence[int]) -> list[Example]:
        """Return the examples at some places; those of a set are read together."""
        numbers, ends = np.asarray(list(places), dtype=np.int64), self.ends
        sets = np.searchsorted(ends, numbers, side="right")
        found: dict[int, Example] = {}
        for i, part in enumerate(self.parts):
            here = (sets == i).nonzero()[0].tolist()
            own = (numbers[here] - (ends[i] - len(part.examples))).tolist()
            found |= zip(here, map(part.named, rows_at(part.examples, own)), strict=True)
        return [found[i] for i in range(len(numbers))]

    def order(self, places: Places, rank: int, world_size: int, *, seed: int, shuffle: bool) -> MixedOrder:
        """Return the order in which a rank reads the rows at some places, [N] int64, which are those that are left.

        Raises:
            DataError: nothing is left of a set that has a weight.
        """
        sets = np.searchsorted(self.ends, places, side="right")
        groups = {part.name: (sets == i).nonzero()[0] for i, part in enumerate(self.parts)}
        weights = [len(groups[part.name]) if part.weight is None else part.weight for part in self.parts]
        mixed = [(part.name, weight) for part, weight in zip(self.parts, weights, strict=True) if weight > 0]
        if empty := [name for name, _ in mixed if not len(groups[name])]:
            raise DataError(f"The data set `{empty[0]}` of the mixture has no training rows left. Set its weight to 0.")
        kept = {name: torch.from_numpy(groups[name]) for name, _ in mixed}
        return MixedOrder(kept, [weight for _, weight in mixed], rank, world_size, seed=seed, shuffle=shuffle)

    def in_turn(self, places: Places) -> list[int]:
        """Return the numbers of the rows at some places such that the sets take turns: what is shown first has all."""
        sets = np.searchsorted(self.ends, places, side="right")
        rows = [(sets == i).nonzero()[0].tolist() for i in range(len(self.parts))]
        waiting = [iter(numbers) for numbers in rows]
        return [next(waiting[chosen]) for chosen in in_turns([len(numbers) for numbers in rows], len(places))]

    def _first(self, number: int) -> MixedExamples:
        """Return so many rows, the first ones of each set, by the weights as far as the sets have rows."""
        left = [len(part.examples) for part in self.parts]
        weights = [size if part.weight is None else part.weight for part, size in zip(self.parts, left, strict=True)]
        taken = [0] * len(left)
        for chosen in in_turns([weight if size else 0.0 for weight, size in zip(weights, left, strict=True)], number):
            taken[chosen] += 1
        taken = [min(wanted, size) for wanted, size in zip(taken, left, strict=True)]
        for i, size in enumerate(left):  # what a small set lacks, the others have
            taken[i] += min(size - taken[i], number - sum(taken))
        parts = zip(self.parts, taken, strict=True)
        return MixedExamples(tuple(replace(part, examples=part.examples[:count]) for part, count in parts))


class MixedOrder(RankSampler):
    """One global order per epoch over several sets, dealt out as that of a `RankSampler`.

    In an epoch every row is read once at least, and sets that are too small for their weight again, each in an order of
    its own that goes on from epoch to epoch. Shuffled, which set comes next is drawn; else they take turns.

    Args:
        groups: the places of each set, [n] int64, by its name.
        weights: of the sets, above 0.
        rank: this process among the data-parallel ones.
        world_size: number of data-parallel processes.
        seed: the order's seed.
        shuffle: whether sets and rows are shuffled.
    """

    def __init__(
        self,
        groups: dict[str, Tensor],
        weights: Sequence[float],
        rank: int = 0,
        world_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.groups = groups
        self.counts = rows_of_an_epoch([len(places) for places in groups.values()], weights)
        super().__init__(sum(self.counts), rank, world_size, seed, shuffle, even=True)

    def order(self) -> Tensor:
        """Return the global order of the epoch, [length] int64."""
        if self.shuffle:
            whole = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))
            sets = whole[torch.randperm(self.length, generator=self._generator("data order", self.epoch))]
        else:
            sets = torch.tensor(list(in_turns(self.counts, self.length)), dtype=torch.int64)
        order = torch.empty(self.length, dtype=torch.int64)
        for i, (name, places) in enumerate(self.groups.items()):
            order[sets == i] = places[self._own_order(name, len(places), self.counts[i])]
        return order

    def _own_order(self, name: str, size: int, count: int) -> Tensor:
        """Return the next `count` of a set's own rows, [count] int64: it is read again and again."""
        first = self.epoch * count
        numbers = torch.arange(first, first + count)
        if not self.shuffle:
            return numbers % size
        rounds = range(first // size, -(-(first + count) // size))
        drawn = [torch.randperm(size, generator=self._generator(f"data order of {name}", turn)) for turn in rounds]
        return torch.cat(drawn)[numbers - rounds.start * size]

    def _generator(self, purpose: str, turn: int) -> torch.Generator:
        return Step(index=turn, total=0, seed=self.seed).generator(purpose, shared=True)


def rows_of_an_epoch(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows of each set an epoch reads: in proportion to the weights, and every row once at least.

    Args:
        sizes: rows of each set, at least one.
        weights: above 0.

    Example:
        >>> rows_of_an_epoch([100, 10], [1.0, 1.0]), rows_of_an_epoch([100, 10], [100, 10])
        ([100, 100], [100, 10])
    """
    longest = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [max(size, round(longest * weight)) for size, weight in zip(sizes, weights, strict=True)]


def in_turns(weights: Sequence[float], number: int | None = None) -> Iterator[int]:
    """Yield which set comes next, so many times or without end; after any number each has had its share, but for one.

    Example:
        >>> list(in_turns([2, 1], 6))
        [0, 1, 0, 0, 1, 0]
    """
    total, credit, count = sum(weights), [0.0] * len(weights), 0
    while total > 0 and count != number:
        credit = [before + weight for before, weight in zip(credit, weights, strict=True)]
        chosen = max(range(len(credit)), key=credit.__getitem__)
        credit[chosen] -= total
        count += 1
        yield chosen


@dataclass(frozen=True)
class MixedStream:
    """Streams that take turns by their weights, until the longest has ended; those that end before begin again.

    Args:
        parts: with rows that can be read again and again, and with weights above 0.
    """

    parts: tuple[Ingredient, ...]

    def __call__(self) -> Iterator[Example]:
        """Begin anew."""
        rows: list[Iterator[Example]] = [iter(part.examples) for part in self.parts]
        waiting = set(range(len(rows)))
        for chosen in in_turns([part.weight or 0.0 for part in self.parts]):
            example = next(rows[chosen], None)
            if example is None:
                waiting.discard(chosen)
                if not waiting:
                    return
                rows[chosen] = iter(self.parts[chosen].examples)
                example = _first_of(rows[chosen], self.parts[chosen].name)
            yield self.parts[chosen].named(example)


def _first_of(rows: Iterable[Example], name: str) -> Example:
    for example in rows:
        return example
    raise DataError(f"The data set `{name}` of the mixture has no training rows. Set its weight to 0.")
