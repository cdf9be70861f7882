"""What a teacher reads in its own ids, for objectives over units."""

from __future__ import annotations

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.units import Units
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.parts.translated_rows import translated
from veto_pl.seams import Models, Sequences


def read_in_own_ids(objective: TokenObjective, sequences: Sequences, models: Models) -> tuple[Sequences, Units]:
    """Return what a teacher with another tokenizer reads of a rollout, and on the host the units of both.

    Raises:
        ConfigurationError: the teacher is to read another text than the student, or cannot read this one.
    """
    name = type(objective).__name__
    if not objective.context.is_neutral:
        raise ConfigurationError(
            f"`{name}.context` is `{type(objective.context).__name__}`, but the teacher has another tokenizer, and "
            "reads the plain prompt. Leave the context out, or take a teacher with the student's tokenizer."
        )
    assert models.teacher_tokenizer is not None, "asked where the teacher has a tokenizer of its own"
    speakers = (models.student, models.tokenizer), (models.required_teacher(), models.teacher_tokenizer)
    return translated(sequences, *speakers, name)
