"""Several calls of an engine for rows that grow, as the turns of episodes do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from veto_pl.core.sampling import Sampling
from veto_pl.core.step import Step
from veto_pl.seams.batches import Sequences
from veto_pl.seams.prompts import PromptBatch

Write = Callable[[PromptBatch, Sampling, Step], Sequences]
"""Lets a model complete prompts, as `Engine.generate` does."""


class Session:
    """Calls of an engine that belong together: in each, rows of the one before may go on.

    An engine may keep what it has read between the calls, while the weights stay as they are. What is written is the
    same with and without. Here nothing is kept, and each call reads its prompts from the start. Used as a context, it
    lets go of everything at the end.

    Args:
        write: reads prompts from the start and completes them.
    """

    def __init__(self, write: Write) -> None:
        self.write = write

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, step: Step, names: Sequence[int], *, is_last: bool = False
    ) -> Sequences:
        """Write `sampling.num_completions` completions of every prompt. Collective where `Engine.generate` is.

        Args:
            prompts: what is read.
            sampling: of the completions.
            step: names the random numbers.
            names: a number of each row that is written, the same from call to call, and of no other row.
            is_last: no call follows.
        """
        return self.write(prompts, sampling, step)

    def close(self) -> None:
        """Let go of all that is kept."""
