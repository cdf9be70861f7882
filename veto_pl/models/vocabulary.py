"""One vocabulary for student and teacher."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ALIGNING = "`SimCT`, or a policy gradient such as `OPD` or `SimpleOPD`,"
"""What learns from a teacher with another tokenizer, as messages name it."""


def real_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids that stand for a token: the largest id plus 1, added tokens included."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher that reads ids differently.

    Raises:
        ConfigurationError: the same id stands for different tokens.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        by_id = {index: token for token, index in theirs.items()}
        wrong = [(index, token, by_id.get(index)) for token, index in ours.items() if by_id.get(index) != token]
        wrong += [(index, None, token) for token, index in theirs.items() if token not in ours]
        examples = ", ".join(f"{index} is {mine!r} and {other!r}" for index, mine, other in wrong[:3])
        raise ConfigurationError(
            f"Student and teacher have different tokenizers: `{student.name_or_path}` ({len(ours)} tokens) and "
            f"`{teacher.name_or_path}` ({len(theirs)} tokens) differ in {len(wrong)} ids, for instance {examples}. "
            f"To compare texts instead, take {ALIGNING} or a teacher of the same family."
        )


def compare_ends(student: tuple[int, ...], teacher: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn if student and teacher end their texts differently, and name the ids of both."""
    if set(student) != set(teacher):
        ours, theirs = (
            ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in sorted(ids)) or "nothing"
            for ids in (student, teacher)
        )
        warnings.warn(
            f"Student and teacher end their texts differently: the student by {ours}, the teacher by {theirs}. A text "
            "that the teacher takes part in ends at any of them, the student's own texts at the student's alone: it "
            "may learn to end where nobody stops it, or never to stop. Name the same `eos_token_id` in both "
            "generation_config.json, or take an instruction-tuned teacher with an instruction-tuned student, or let "
            "the teacher read its own way, by `context: OwnTemplate` in the objective.",
            stacklevel=3,
        )
