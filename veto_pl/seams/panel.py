"""The seam of several teachers: which of them look at a rollout, what each reads, and how much each counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.part import Part
from veto_pl.core.scores import TopKScores
from veto_pl.core.step import Step
from veto_pl.functional.own_ends import Ends
from veto_pl.functional.pooled_head import Pool
from veto_pl.functional.stat import Stat
from veto_pl.functional.units import Units
from veto_pl.seams.batches import Sequences
from veto_pl.seams.rollouts import Models, Writing
from veto_pl.seams.teacher_context import TeacherContext


@dataclass(frozen=True)
class Reading:
    """What one teacher reads of a rollout with N tokens that count, and which of them it speaks of.

    Args:
        teacher: the teacher's name; `teacher` is `model.teacher`.
        sequences: rows of the student's ids, M tokens of which count; with `units`, rows of the teacher's own ids.
        places: [M] int64 on the host, ascending: the token of the rollout, counted row by row, that each counted token
            of `sequences` stands for; None where each stands for its own, and M is N.
        weights: the teacher's share of each of these tokens, [M] float32 on the host, or the same of all. The shares of
            a token add up to 1 over its readings.
        ends: by which ids the student and this teacher end a text; None where ids are compared as they are.
        said: for each row of the rollout, what the teacher has said of its turns, by name, for tables; empty where it
            has said nothing of any.
        metrics: undivided numbers to log under the teacher's name; every rank has them by the same names.
        told: what a teacher without a model has said of these tokens, [M]; None for a model. An objective asks for it.
        units: on the host, which of the M tokens and of those of `sequences` stand for the same bytes. None lets an
            objective that aligns tokenizers find it out, and is right where the teacher has the student's tokenizer.
    """

    teacher: str
    sequences: Sequences
    places: Tensor | None = None
    weights: Tensor | float = 1.0
    ends: Ends | None = None
    said: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    metrics: Mapping[str, Stat] = field(default_factory=dict)
    units: Units | None = None
    told: TopKScores | None = None

    @property
    def spoken(self) -> int:
        """Return M, the tokens of the rollout that it speaks of."""
        return len(self.sequences.prediction_index) if self.units is None else len(self.units.student)


class Panel(Part, ABC):
    """Which teachers look at a rollout, what each of them reads, and how much each counts.

    The loss of a token is the mean of an objective's losses against each teacher that reads it, by their weights.
    Tokens that nobody reads are not trained on, and `train/unread` counts them.

    A panel with a `pool` makes one teacher of all of them instead. Each then reads everything, and its weight is one
    number.

    Attributes:
        aligns_tokenizers: each of its teachers reads rows of the rollout behind what the context makes of them, and
            writes nothing, so that one with another tokenizer can read the same in ids of its own.
    """

    aligns_tokenizers = False

    @property
    def pool(self) -> Pool | None:
        """Return what of the teachers is added up before there is a loss; None where their losses are."""
        return None

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        """Return the teachers that it may ask, of those that a run has; by default all of them.

        A name that the run does not have is refused before anything is loaded.

        Args:
            named: the names of the run's teachers.
        """
        return tuple(named)

    def writings(self, named: Sequence[str]) -> tuple[Writing, ...]:
        """Return what teachers write in every micro-batch before they read, one after another; by default nothing.

        Args:
            named: the names of the run's teachers.
        """
        return ()

    def beside(self, named: Sequence[str]) -> int:
        """Return the tokens that each teacher reads beside a row at most, for plans; by default none.

        Args:
            named: the names of the run's teachers.
        """
        return 0

    def planned(self) -> Panel:
        """Return a panel that costs as much or more, for plans; by default the same.

        A plan knows no rows, so every teacher reads all of them or none.
        """
        return self

    @abstractmethod
    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        """Return one reading at least of each teacher that it `asks`, in that order.

        Collective: every rank calls it, and every teacher reads on every rank, if need be no rows.

        Args:
            sequences: the rollout.
            context: what a teacher reads of it, unless the panel says otherwise.
            models: with all teachers.
            step: where training stands.
        """


def reading(
    teacher: str,
    sequences: Sequences,
    context: TeacherContext,
    models: Models,
    step: Step,
    *,
    rows: Tensor | None = None,
    weight: float = 1.0,
) -> Reading:
    """Return what a teacher reads of some rows of a rollout, all of it with the same weight.

    Args:
        teacher: its name.
        sequences: the rollout.
        context: what it reads of these rows; it sees this teacher as the one teacher.
        models: with all teachers.
        step: where training stands.
        rows: [K] int64 on the host, ascending, the rows that it reads; None for all.
        weight: its share of each token.

    Raises:
        ConfigurationError: there is no such teacher.
    """
    places = None if rows is None else tokens_of_rows(sequences, rows)
    chosen = sequences if rows is None else sequences.rows(rows)
    taught = models.taught_by(teacher)
    return Reading(teacher, context(chosen, taught, step), places, weight, context.ends(taught))


def tokens_of_rows(sequences: Sequences, rows: Tensor) -> Tensor:
    """Return the places [M] of the tokens that count in some rows ([K] int64, ascending), both on the host."""
    chosen = torch.zeros(len(sequences), dtype=torch.bool)
    chosen[rows] = True
    mask = sequences.host_masks[1, :, 1:]
    return chosen[:, None].expand_as(mask)[mask].nonzero()[:, 0]
