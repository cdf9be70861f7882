"""A context that shows the teacher a completion that failed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from veto_pl.core.bounds import CountFromZero
from veto_pl.parts.contexts import Peer
from veto_pl.seams import Sequences


@dataclass(frozen=True)
class WrongPeer(Peer):
    """The student's completion behind a prompt that shows another completion of it that was not successful.

    Beside `Peer` with the same texts it tells what a hint says by its form alone.

    Args:
        hint: a format string over `{prompt}`, `{peer}`, `{feedback}` and the fields of the row.
        peer: a format string for the other completion, `{completion}` being its text.
        feedback: a format string over the fields of the row.
        threshold: the reward below which a completion is not successful.
        template: makes the text of the hinted prompt; None takes the template of the data.
        place: which of the other failures is shown, counted from 0; a row with fewer keeps its prompt.

    References:
        arXiv 2606.11709
    """

    place: CountFromZero = 0

    @classmethod
    def examples(cls) -> tuple[WrongPeer, ...]:
        return cls("{peer}{prompt}", "{completion}>"), cls("{peer}{prompt}", "{completion}>", place=1)

    def peers(self, sequences: Sequences) -> Tensor:
        """Return [B] int64: the row of another, failed completion of the same prompt; -1 where there is none."""
        assert sequences.rewards is not None, "a context with `needs_rewards` always gets them"
        return self.other_completion(sequences, sequences.rewards < self.threshold, self.place)
