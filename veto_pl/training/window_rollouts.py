"""The rollout of a whole accumulation window at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate

from veto_pl.core.memory import remembers
from veto_pl.seams import Models, PromptBatch, Rollouts, RolloutSource, Sequences, Step


class WindowRollouts:
    """Rolls out the prompts of an accumulation window as one batch, and deals the rows out to its micro-batches.

    A rollout takes nearly as long for few rows as for many, and keeps no activations, so it has room for more rows than
    a backward pass. A row is the same either way: what a source writes for a prompt is a function of the prompt and of
    its number. Sources that remember, and those for which no model writes, are asked micro-batch by micro-batch.

    Args:
        at_once: whether the window is rolled out as one batch where its batches are known (`PromptBatch.following`).
    """

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self._waiting: deque[Rollouts] = deque()

    def clear(self) -> None:
        """Forget what was written for micro-batches that have not come."""
        self._waiting.clear()

    def write(self, sources: Iterable[RolloutSource], batch: PromptBatch, models: Models, step: Step) -> Rollouts:
        """Return what each source writes for a micro-batch.

        Collective where a writer is sharded: call it on every rank.
        """
        if self.at_once and batch.following and not self._waiting:
            self._waiting.extend(_write_ahead(sources, batch, models, step))
        written = self._waiting.popleft() if self._waiting else {}
        rollouts: dict[RolloutSource, Sequences] = {}
        for source in sources:
            if source in written:
                rollouts[source] = written[source].with_fields(prompts=batch)
            else:
                rollouts[source] = source(batch, replace(models, rollouts=rollouts), step)
        return rollouts


def _write_ahead(
    sources: Iterable[RolloutSource], batch: PromptBatch, models: Models, step: Step
) -> Iterable[Rollouts]:
    """Return, for a micro-batch and each that follows it, what those sources write that can write ahead."""
    able = [one for one in sources if not remembers(one) and any(writing.writers for writing in one.writings())]
    if not able:  # then nothing has to be sent to the device before its turn
        return ()
    parts = (batch, *(later.to(batch.input_ids.device) for later in batch.following))
    whole, written = PromptBatch.concatenate(parts), dict[RolloutSource, Sequences]()
    for source in able:
        written[source] = source(whole, replace(models, rollouts=written), step)
    starts = accumulate((len(part) for part in parts), initial=0)
    return [
        {source: rows.of_part(start, part) for source, rows in written.items()}
        for start, part in zip(starts, parts, strict=False)
    ]
