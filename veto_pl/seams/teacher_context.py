"""The seam of contexts: what the teacher reads."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from veto_pl.core.part import Part
from veto_pl.core.step import Step
from veto_pl.functional.own_ends import Ends
from veto_pl.seams.batches import Sequences
from veto_pl.seams.rollouts import Models


class TeacherContext(Part, ABC):
    """What the teacher reads: the same text, or the same completion behind another prompt.

    What it `needs`, and whether it `compares_completions`, holds for the objective that has it (see `Objective`).

    Attributes:
        tells_nothing: what the teacher reads is only written otherwise, so a validation has it read the same.
    """

    needs_rewards = False
    compares_completions = False
    tells_nothing = False

    @abstractmethod
    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        """Return rows that hold the same completion tokens in the same order; `sequences.prompts` has the examples."""

    def ends(self, models: Models) -> Ends | None:
        """Return by which ids the student and the one teacher end a text; None to compare ids as they are."""
        return None

    def informed(self, sequences: Sequences) -> Tensor:
        """Return [B] bool: the rows for which the teacher is told what there is to tell."""
        return sequences.on_policy | True
