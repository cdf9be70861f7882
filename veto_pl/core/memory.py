"""What a run remembers from one optimizer step to the next beside weights, and saves with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from veto_pl.core.nested import inside
from veto_pl.core.ranks import rank_and_size

State = dict[str, Any]
"""Tensors on the CPU, and plain values: a checkpoint is read without running code from it."""


class Memory(ABC):
    """The memory of one rollout source on one rank.

    What is remembered during a window of micro-batches counts from the next optimizer step on, because a checkpoint
    that is taken inside a window holds the state of the window's beginning.
    """

    @abstractmethod
    def end_step(self, *, done: bool) -> None:
        """Close an optimizer step: with `done`, what was remembered since the last step counts from now on; else forget
        it.
        """

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """Take note of a validation during the fit. The effect counts at once: checkpoints are saved after it.

        Args:
            metrics: its values by their logged names, such as `validation/forward_kl`; the same on all ranks.
        """

    def numbers(self) -> Mapping[str, float]:
        """Return what to log at every step, under `train/`; the values must be the same on all ranks."""
        return {}

    @abstractmethod
    def state(self) -> State:
        """Return what a checkpoint has to hold of this memory."""

    @abstractmethod
    def restore(self, states: Sequence[State], rank: int) -> None:
        """Continue from what all ranks of a run had saved; the number of ranks may be another one now.

        Args:
            states: of each rank of the run that was saved.
            rank: this one.
        """


class Remembers:
    """A strategy, such as a rollout source, that may keep a memory from one optimizer step to the next."""

    def new_memory(self) -> Memory | None:
        """Return the memory that a run begins with, later found by `models.memories.of(self)`; None for no memory."""
        return None


def remembers(source: Remembers) -> bool:
    """Return whether the source, or one inside of it, has a memory."""
    return any(part.new_memory() is not None for part in inside(source, Remembers))


class Memories:
    """The memories of all sources on one rank. Sources with the same `repr` share a memory."""

    def __init__(self) -> None:
        self._owners: dict[str, Remembers] = {}
        self._known: dict[str, Memory] = {}
        self._saved: list[dict[str, State]] = []

    def claim(self, sources: Iterable[Remembers]) -> None:
        """Create the memories of these sources and of the sources inside them, or restore them from a checkpoint.

        A run does so before its first step: a validation may come before the first rollout.
        """
        for source in sources:
            for owner in inside(source, Remembers):
                self._begin(owner)

    def of(self, owner: Remembers) -> Any:
        """Return the memory of a source that has one."""
        self._begin(owner)
        return self._known[repr(owner)]

    def end_step(self, *, done: bool = True) -> None:
        """Tell every memory that an optimizer step was done, or skipped."""
        for memory in self._known.values():
            memory.end_step(done=done)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Show every memory the metrics of a validation, by their logged names."""
        for memory in self._known.values():
            memory.observe(metrics)

    def numbers(self) -> dict[str, float]:
        """Return what the memories log, by name."""
        return {name: value for memory in self._known.values() for name, value in memory.numbers().items()}

    def states(self) -> list[dict[str, State]]:
        """Gather the memories' states, one dict per rank in the order of ranks. Collective: call it on every rank."""
        own = {key: memory.state() for key, memory in self._known.items()}
        # What was saved and belongs to nobody is not lost; after a change of ranks it stays with the first ones.
        rank, ranks = rank_and_size()
        saved = self._saved[rank] if rank < len(self._saved) else {}
        own = {**saved, **own}
        if ranks == 1:
            return [own]
        everybody: list[Any] = [None] * ranks
        dist.all_gather_object(everybody, own)
        return everybody

    def restore(self, states: list[dict[str, State]]) -> None:
        """Restore the memories from what `states` returned in an earlier run."""
        self._known, self._saved = {}, states
        for owner in self._owners.values():
            self._begin(owner)

    def _begin(self, owner: Remembers) -> None:
        key = repr(owner)
        if key in self._known or (memory := owner.new_memory()) is None:
            return
        if states := [state[key] for state in self._saved if key in state]:
            memory.restore(states, rank_and_size()[0])
        self._owners[key], self._known[key] = owner, memory
