"""The seam of contexts: what the teacher reads."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from veto_pl.core.part import Part
from veto_pl.core.step import Step
from veto_pl.seams.batches import Sequences
from veto_pl.seams.rollouts import Models


class TeacherContext(Part, ABC):
    """What the teacher reads: the same text, or the same completion behind another prompt.

    What it `needs`, and whether it `compares_completions`, holds for the objective that has it (see `Objective`).
    """

    needs_rewards = False
    compares_completions = False

    @abstractmethod
    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        """Return rows that hold the same completion tokens in the same order; `sequences.prompts` has the examples."""

    def informed(self, sequences: Sequences) -> Tensor:
        """Return [B] bool: the rows for which the teacher is told what there is to tell."""
        return sequences.on_policy | True
