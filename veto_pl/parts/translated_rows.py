"""What a teacher with another tokenizer reads of a rollout: the same texts in its own ids, behind its own prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.core.special_ids import end_ids
from veto_pl.data.translator import Translator
from veto_pl.functional.units import Units, joined_units, unit_sums
from veto_pl.parts.contexts import check_room
from veto_pl.parts.own_template import prompts_written
from veto_pl.seams import LanguageModel, Sequences, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Speaker = tuple[LanguageModel, "PreTrainedTokenizerBase"]
"""A model, and the tokenizer that its ids are of."""


def translated(sequences: Sequences, student: Speaker, teacher: Speaker, name: str) -> tuple[Sequences, Units]:
    """Return what a teacher reads of a rollout in its own ids, and which tokens of both stand for the same bytes.

    Prompts are made anew of their examples, by the template of the data as the teacher's tokenizer fills it in.
    Completions are the bytes that the student has written, as far as they can be aligned (`Translator`). The student's
    ids stay what they are.

    Args:
        sequences: B rows of the student's ids, N tokens of which count.
        student: who wrote them.
        teacher: who reads them.
        name: of the class that asks, for messages.

    Returns:
        B rows of the teacher's ids, Nt tokens of which count, and, on the host, the units of the N and the Nt tokens.
        A unit is left out unless all its tokens of the student count.

    Raises:
        ConfigurationError: a tokenizer cannot be aligned, the prompts cannot be made anew, or they are too long for the
            teacher.
    """
    translator = _translator(student[1], teacher[1], *(end_ids(of, model.model) for model, of in (student, teacher)))
    found = translator(sequences.completion_ids())
    counted = [
        line[there] for line, there in zip(sequences.host_masks[1], sequences.completion_mask.cpu(), strict=True)
    ]
    kept = [_of_counted(units, counts) for (_, units), counts in zip(found, counted, strict=True)]
    told = prompts_written(sequences.prompts, teacher[1], None, name).rows(sequences.prompt_rows)
    ids, written = pad_right([torch.tensor(row, dtype=torch.int64) for row, _ in found])
    counting, _ = pad_right([(units.teacher >= 0).long() for units in kept])
    device = sequences.input_ids.device
    rows = Sequences.join(told, ids.to(device), written.to(device), on_policy=sequences.on_policy)
    behind = torch.cat([torch.zeros_like(told.attention_mask), counting.bool().to(device)], 1)
    rows = rows.with_fields(loss_mask=behind)
    check_room(rows, teacher[0], name)
    units = joined_units([replace(one, teacher=one.teacher[one.teacher >= 0]) for one in kept])
    return rows, replace(units, shared=translator.shared)


@lru_cache(maxsize=16)
def _translator(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    student_ends: tuple[int, ...],
    teacher_ends: tuple[int, ...],
) -> Translator:
    return Translator(student, teacher, student_ends, teacher_ends)


def _of_counted(units: Units, counts: Tensor) -> Units:
    """Return the units of which all tokens of the student count ([C] bool), for those of its tokens that do."""
    whole = units.only(unit_sums((~counts).long(), units.student, units.count) == 0)
    return replace(whole, student=whole.student[counts])
