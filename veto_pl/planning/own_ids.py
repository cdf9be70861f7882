"""Teachers of a plan that read ids of their own: rows of other lengths, and units without values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from veto_pl.core.nested import changed
from veto_pl.functional.pooled_head import Pool
from veto_pl.functional.units import Units
from veto_pl.planning.rollout import Lengths, sequences
from veto_pl.planning.shape_models import ShapeOnlyLM
from veto_pl.seams import LanguageModel, Models, Objective, Panel, Reading, Sequences, Step, TeacherContext, Writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.planning.observation import Observation

SPECIMEN = (
    "The teacher reads what the student has written, in tokens of its own. Is 1,234 + 56.7 = 1290.7? Yes: it is.\n"
    "def total(numbers):\n    return sum(number for number in numbers if number > 0)\n"
)
"""A text of words, numbers and code, by which lengths are compared: a plan has read no data."""


def lengths_ratio(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> float:
    """Return how many tokens a teacher reads for each of the student's, by the specimen."""
    mine, theirs = (len(one(SPECIMEN, add_special_tokens=False)["input_ids"]) for one in (student, teacher))
    return theirs / max(mine, 1)


def in_own_ids(objective: Objective, models: Models, lengths: Lengths, observation: Observation) -> Objective:
    """Return an objective whose teachers read rows of their own lengths, where they have other tokenizers.

    Args:
        objective: of the plan.
        models: of the plan.
        lengths: of the student's rows.
        observation: is told what the masks of the teachers' rows look like.
    """
    ratios = {name: lengths_ratio(models.tokenizer, theirs) for name, theirs in models.tokenizers.items()}

    def own(panel: Panel) -> Panel:
        return _InOwnIds(panel, lengths, ratios, observation)

    return changed(objective, Panel, own) if ratios else objective  # type: ignore[type-abstract]


class PlannedUnits(Units):
    """Units of so many tokens of a student and of a teacher, all of them aligned, without values."""

    @classmethod
    def of(cls, mine: int, theirs: int, ids: int) -> PlannedUnits:
        """Return as many units as there can be.

        Args:
            mine: tokens of the student.
            theirs: of the teacher.
            ids: that both share.
        """
        count = min(mine, theirs)
        made = cls(_numbers(mine), _numbers(theirs), count, (_numbers(ids), _numbers(ids)))
        pair = _numbers(count), _numbers(count)
        vars(made).update(sizes=pair, first=pair, others=_numbers(mine - count))
        return made

    def only(self, kept: Tensor) -> PlannedUnits:
        """Return all of them: how many are kept is not known."""
        return self

    def without(self, tokens: Tensor) -> PlannedUnits:
        """Return all of them."""
        return self

    def to(self, device: torch.device | str) -> PlannedUnits:
        """Return the same; nothing of them is anywhere."""
        return self


@dataclass(frozen=True)
class _InOwnIds(Panel):
    """A panel whose teachers with another tokenizer read rows of their own lengths.

    Args:
        panel: says who reads.
        lengths: of the student's rows.
        ratios: of the lengths of teachers that read ids of their own, by name.
        observation: is told what a row's mask looks like.
    """

    panel: Panel
    lengths: Lengths
    ratios: Mapping[str, float] = field(hash=False)
    observation: Observation = field(compare=False)

    aligns_tokenizers = True

    @property
    def pool(self) -> Pool | None:
        """Return the panel's."""
        return self.panel.pool

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        """Return those that the panel asks."""
        return self.panel.asks(named)

    def writings(self, named: Sequence[str]) -> tuple[Writing, ...]:
        """Return what the panel has teachers write."""
        return self.panel.writings(named)

    def beside(self, named: Sequence[str]) -> int:
        """Return what the panel has teachers read beside a row."""
        return self.panel.beside(named)

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        """Return the readings of the panel, of which some have other rows."""
        return tuple(self._read(one, models) for one in self.panel(sequences, context, models, step))

    def _read(self, one: Reading, models: Models) -> Reading:
        rows, width = one.sequences.input_ids.shape
        ratio, new = self.ratios.get(one.teacher, 1.0), width - self.lengths.prompt
        prompt, theirs = max(round(ratio * self.lengths.prompt), 1), max(round(ratio * new), 1)
        read = sequences(rows, prompt, theirs, Writing())
        self.observation.expect(read.input_ids.shape, prompt)
        student, teacher = models.student, models.teacher_named(one.teacher)
        mine, read_by_teacher = _seen(student, rows * new), _seen(teacher, rows * theirs)
        units = PlannedUnits.of(mine, read_by_teacher, min(student.vocab_size, teacher.vocab_size))
        return replace(one, sequences=read, units=units)


def _seen(model: LanguageModel, tokens: int) -> int:
    """Return how many of these tokens a readout is shown."""
    return min(tokens, cast(ShapeOnlyLM, model).sample)


def _numbers(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)
