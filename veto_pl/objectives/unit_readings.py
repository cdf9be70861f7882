"""What teachers read in their own ids."""

from __future__ import annotations

import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.units import Units
from veto_pl.parts.translated_rows import translated
from veto_pl.seams import Models, Reading, Sequences, TeacherContext


def read_in_own_ids(one: Reading, models: Models, name: str) -> tuple[Sequences, Units]:
    """Return what a teacher reads of a reading's rows, and on the host the units of both.

    Args:
        one: of the student's ids, unless it has units already.
        models: with the teacher. Where it has the student's tokenizer, every token is a unit.
        name: of the class that asks, for messages.

    Raises:
        ConfigurationError: the teacher cannot read the text.
    """
    if one.units is not None:
        return one.sequences, one.units
    tokenizer = models.tokenizers.get(one.teacher)
    if tokenizer is None:
        tokens, ids = torch.arange(one.spoken), torch.arange(models.student.vocab_size)
        return one.sequences, Units(tokens, tokens, len(tokens), (ids, ids))
    speakers = (models.student, models.tokenizer), (models.teacher_named(one.teacher), tokenizer)
    return translated(one.sequences, *speakers, name)


def check_plain(context: TeacherContext, names: list[str], name: str) -> None:
    """Raise `ConfigurationError` where teachers with ids of their own are to read another text than the student.

    Args:
        context: what a teacher reads.
        names: of these teachers.
        name: of the class that asks.
    """
    if names and not context.is_neutral:
        raise ConfigurationError(
            f"`{name}.context` is `{type(context).__name__}`, but the teacher `{names[0]}` has another tokenizer, and "
            "reads the plain prompt. Leave the context out, or take a teacher with the student's tokenizer."
        )
