"""What a run remembers from one optimizer step to the next, beside weights: it is saved with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from veto_pl.core.nested import inside
from veto_pl.core.ranks import place

State = dict[str, Any]
"""Tensors on the CPU, and plain values: a checkpoint is read without running code from it."""


class Memory(ABC):
    """The memory of one rollout source on one rank.

    What is remembered during a window of micro-batches counts from the next optimizer step on, because a checkpoint
    that is taken inside a window is that of the window's beginning.
    """

    @abstractmethod
    def end_step(self, *, done: bool) -> None:
        """An optimizer step is done: what was remembered since the last one counts. One left out is forgotten."""

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """A validation during the fit is done. What is made of it counts at once: checkpoints are saved behind it.

        Args:
            metrics: its values by their logged names, such as `validation/forward_kl`; the same on all ranks.
        """

    def numbers(self) -> Mapping[str, float]:
        """What to log of it at every step, under `train/`; the same on all ranks."""
        return {}

    @abstractmethod
    def state(self) -> State:
        """What counts."""

    @abstractmethod
    def restore(self, states: Sequence[State], rank: int) -> None:
        """Goes on from what all ranks of a run had saved, on one of perhaps another number of ranks.

        Args:
            states: of each rank of the run that was saved.
            rank: this one.
        """


class Remembers:
    """What may remember something from step to step, such as a rollout source."""

    def new_memory(self) -> Memory | None:
        """Return what is remembered as a run begins; it is found by `models.memories.of(self)`. None for nothing."""
        return None


class Memories:
    """The memories of a rank, by whose they are: a source is told from others by its `repr`."""

    def __init__(self) -> None:
        self._owners: dict[str, Remembers] = {}
        self._known: dict[str, Memory] = {}
        self._saved: list[dict[str, State]] = []

    def claim(self, sources: Iterable[Remembers]) -> None:
        """Begins the memories of the sources and of those inside of them, or goes on with what was saved of them.

        A run does so before its first step: a validation may come before the first rollout.
        """
        for source in sources:
            for owner in inside(source, Remembers):
                self._begin(owner)

    def of(self, owner: Remembers) -> Any:
        """The memory of a source that has one."""
        self._begin(owner)
        return self._known[repr(owner)]

    def end_step(self, *, done: bool = True) -> None:
        """Tells all that an optimizer step is done, or left out."""
        for memory in self._known.values():
            memory.end_step(done=done)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Shows all what a validation has come to."""
        for memory in self._known.values():
            memory.observe(metrics)

    def numbers(self) -> dict[str, float]:
        """What all have to log."""
        return {name: value for memory in self._known.values() for name, value in memory.numbers().items()}

    def states(self) -> list[dict[str, State]]:
        """Of every rank. Every rank has to ask."""
        own = {key: memory.state() for key, memory in self._known.items()}
        # What was saved and belongs to nobody is not lost; after a change of ranks it stays with the first ones.
        rank, ranks = place()
        saved = self._saved[rank] if rank < len(self._saved) else {}
        own = {**saved, **own}
        if ranks == 1:
            return [own]
        everybody: list[Any] = [None] * ranks
        dist.all_gather_object(everybody, own)
        return everybody

    def restore(self, states: list[dict[str, State]]) -> None:
        """Goes on with what `states` gave."""
        self._known, self._saved = {}, states
        for owner in self._owners.values():
            self._begin(owner)

    def _begin(self, owner: Remembers) -> None:
        key = repr(owner)
        if key in self._known or (memory := owner.new_memory()) is None:
            return
        if states := [state[key] for state in self._saved if key in state]:
            memory.restore(states, place()[0])
        self._owners[key], self._known[key] = owner, memory
