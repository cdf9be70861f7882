"""What the teacher reads."""

from dataclasses import dataclass

from veto_pl.seams import TeacherContext
from veto_pl.types import Models, Sequences, Step


@dataclass(frozen=True)
class SameText(TeacherContext):
    """The text that the student read and wrote."""

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        return sequences
