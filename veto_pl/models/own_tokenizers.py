"""Which models may read ids of their own: a teacher of an objective that aligns tokenizers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from veto_pl.core.nested import given, walk
from veto_pl.data.token_bytes import token_bytes
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.vocabulary import check_tokenizers
from veto_pl.seams import ModelSource, Objective, Panel, TeacherContext
from veto_pl.seams.teacher_names import TEACHER, listed, setting_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_tokenizers(
    tokenizer: PreTrainedTokenizerBase,
    others: Mapping[str, PreTrainedTokenizerBase],
    teachers: Mapping[str, ModelSource],
    objective: Objective | None,
) -> dict[str, PreTrainedTokenizerBase]:
    """Return the tokenizers that give other ids than the student's, by the name of the teacher.

    Args:
        tokenizer: of the student.
        others: of the frozen models that bring one, by their roles.
        teachers: where teachers come from, by name.
        objective: says whether it aligns tokenizers; None for one that does not.

    Raises:
        ConfigurationError: a model has such a tokenizer, and the objective cannot align it, or not as it is set.
    """
    own = {role: theirs for role, theirs in others.items() if theirs.get_vocab() != tokenizer.get_vocab()}
    for role, theirs in own.items():
        if objective is None or not objective.aligns_tokenizers or role not in teachers:
            check_tokenizers(tokenizer, theirs)
        elif problem := next(_problems(objective, role, teachers[role], tuple(teachers)), None):
            raise ConfigurationError(
                f"`{setting_of(role)}` has another tokenizer than the student, and {problem}. Change that, or take a "
                "teacher with the student's tokenizer."
            )
        for one in (tokenizer, theirs):
            token_bytes(one)
    return own


def check_shared_ids(apart: Collection[str], what: str, instead: str = "") -> None:
    """Raise `ConfigurationError` where teachers read ids of their own.

    Args:
        apart: the names of these teachers.
        what: would have them read the student's ids, as the message calls it.
        instead: of it may be taken, as `"`SimCT`, or "`.
    """
    if apart:
        raise ConfigurationError(
            f"{what} compares ids, but {listed(apart)} reads ids of its own. Take {instead}a teacher with the "
            "student's tokenizer."
        )


def _problems(objective: Objective, name: str, source: ModelSource, named: Sequence[str]) -> Iterator[str]:
    """Yield what an objective that aligns tokenizers would have a teacher do with the student's ids."""
    if source.moves:
        yield f"`{type(source).__name__}` follows the student, whose ids it would have to read"
    parts = [part for _, part in walk(objective, derived=True) if isinstance(part, Objective) and part.needs_teacher]
    asking = [
        (part, panel)
        for part in parts
        for panel in given(part, Panel)  # type: ignore[type-abstract]
        if name in panel.asks(named)
    ]
    if not asking:
        yield "nobody who reads it aligns tokenizers"
    for part, panel in asking:
        yield from _misread(part, panel, name)
    for written in objective.sources:
        if any(name in one.writers for one in written.writings()):
            yield f"`{type(written).__name__}` lets it write, in ids that the student does not have"


def _misread(part: Objective, panel: Panel, name: str) -> Iterator[str]:
    """Yield why an objective with a panel cannot have a teacher read its own ids."""
    kind = type(part).__name__
    if not part.aligns_named and not panel.is_neutral:
        alone = f"of `{kind}` only `{setting_of(TEACHER)}` may have one, with the panel `OneTeacher`"
        yield alone if name != TEACHER else f"`{type(panel).__name__}` of `{kind}` would have it read the student's ids"
    elif not panel.is_neutral and (not panel.aligns_tokenizers or panel.pool is not None):
        yield f"`{type(panel).__name__}` of `{kind}` would have it read the student's ids"
    for context in given(part, TeacherContext):  # type: ignore[type-abstract]
        if not context.is_neutral:
            yield f"`{type(context).__name__}` of `{kind}` would have it read the student's ids"
