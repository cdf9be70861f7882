"""What a teacher with another tokenizer reads of a rollout: the same texts in its own ids, behind its own prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.core.special_ids import end_ids
from veto_pl.data.translator import Translator
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.units import Units, joined_units, unit_sums
from veto_pl.parts.contexts import check_room
from veto_pl.parts.own_template import prompts_written
from veto_pl.seams import LanguageModel, PromptBatch, Sequences, pad_left, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Speaker = tuple[LanguageModel, "PreTrainedTokenizerBase"]
"""A model, and the tokenizer that its ids are of."""


def translated(sequences: Sequences, student: Speaker, teacher: Speaker, name: str) -> tuple[Sequences, Units]:
    """Return what a teacher reads of a rollout in its own ids, and which tokens of both stand for the same bytes.

    Prompts are made anew of their examples, by the template of the data as the teacher's tokenizer fills it in. What a
    row of a dialogue has read beside its prompt, and completions, are the same bytes, as far as they can be aligned
    (`Translator`). The student's ids stay what they are.

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
    if sequences.turn_ids is not None:
        told = _with_dialogues(told, sequences, translator, name)
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


def _with_dialogues(told: PromptBatch, sequences: Sequences, translator: Translator, name: str) -> PromptBatch:
    """Return prompts, one for each row, with the bytes of what was read in place of those that a dialogue extends.

    Raises:
        ConfigurationError: something that was read has no counterpart in the teacher's ids.
    """
    assert sequences.prompts is not None, "the prompts were made of its examples"
    known, read = sequences.prompts.on_host, sequences.read_ids()
    own = [ids[mask].tolist() for ids, mask in zip(known.input_ids, known.attention_mask, strict=True)]
    others = [row for row, of in enumerate(sequences.prompt_rows.tolist()) if read[row] != own[of]]
    if not others:
        return told
    texts = [ids[mask].cpu() for ids, mask in zip(told.input_ids, told.attention_mask, strict=True)]
    for row, (ids, units) in zip(others, translator([read[row] for row in others]), strict=True):
        unread = [i for i, unit in zip(read[row], units.student.tolist(), strict=True) if unit < 0]
        if lost := [*translator.lacking(read[row]), *unread]:
            raise ConfigurationError(
                f"`{name}` has a teacher with another tokenizer, which cannot read what the student has read in a "
                f"dialogue: the id {lost[0]} has no counterpart. Take a template whose marks both "
                "tokenizers have, such as `PlainTemplate`, or a teacher with the student's tokenizer."
            )
        texts[row] = torch.tensor(ids, dtype=torch.int64)
    stacked, mask = (part.to(told.input_ids.device) for part in pad_left(texts))
    return replace(told, input_ids=stacked, attention_mask=mask)
