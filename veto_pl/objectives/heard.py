"""A rollout beside what teachers have read of it."""

from __future__ import annotations

from dataclasses import dataclass

from veto_pl.objectives.voices import Voices
from veto_pl.seams import Models, Reading, Sequences


@dataclass(frozen=True)
class Heard:
    """A rollout without the tokens that nobody reads, and what each teacher has read of it.

    Args:
        sequences: N tokens of which count.
        readings: of the panel, M tokens each; none where no teacher is needed.
        voices: which of the N tokens each reading stands for.
    """

    sequences: Sequences
    readings: tuple[Reading, ...]
    voices: Voices

    @property
    def names(self) -> list[str]:
        """Return the teacher of each reading."""
        return [one.teacher for one in self.readings]

    def by_own_ids(self, models: Models) -> bool:
        """Return whether one of these teachers reads ids of its own."""
        return any(name in models.tokenizers for name in self.names)
