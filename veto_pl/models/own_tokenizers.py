"""Which models may read ids of their own: a teacher of an objective that aligns tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from veto_pl.core.nested import given, walk
from veto_pl.data.token_bytes import token_bytes
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.vocabulary import check_tokenizers
from veto_pl.seams import Models, ModelSource, Objective, Panel, TeacherContext
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
        elif problem := next(_problems(objective, role, teachers[role]), None):
            raise ConfigurationError(
                f"`{setting_of(role)}` has another tokenizer than the student, and {problem}. Change that, or take a "
                "teacher with the student's tokenizer."
            )
        for one in (tokenizer, theirs):
            token_bytes(one)
    return own


def check_shared_ids(models: Models, what: str, instead: str = "") -> None:
    """Raise `ConfigurationError` where a teacher reads ids of its own.

    Args:
        models: of the run.
        what: would have the teacher read the student's ids, as the message calls it.
        instead: of it may be taken, as `"`SimCT`, or "`.
    """
    if models.tokenizers:
        raise ConfigurationError(
            f"{what} compares ids, but {listed(models.tokenizers)} reads ids of its own. Take {instead}a teacher with "
            "the student's tokenizer."
        )


def _problems(objective: Objective, name: str, source: ModelSource) -> Iterator[str]:
    """Yield what an objective that aligns tokenizers would have a teacher do with the student's ids."""
    if name != TEACHER:
        yield f"only `{setting_of(TEACHER)}` may have one"
    if source.moves:
        yield f"`{type(source).__name__}` follows the student, whose ids it would have to read"
    for _, part in walk(objective, derived=True):
        if not isinstance(part, Objective) or not part.needs_teacher:
            continue
        for kind in (TeacherContext, Panel):
            for one in given(part, kind):
                if not one.is_neutral:
                    what = f"`{type(one).__name__}` of `{type(part).__name__}`"
                    yield f"{what} would have it read the student's ids"
    for written in objective.sources:
        if any(name in one.writers for one in written.writings()):
            yield f"`{type(written).__name__}` lets it write, in ids that the student does not have"
