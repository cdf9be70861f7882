"""How a loss over units is evaluated: two tokenisations of the same text through their heads, one gradient back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from veto_pl.functional.chunk_size import ChunkRows
from veto_pl.functional.chunked import RowStream
from veto_pl.functional.compilation import Compile
from veto_pl.functional.gradients import Gradients
from veto_pl.functional.heads import Head
from veto_pl.functional.unit_outcomes import Score, SharedHead, listed_units
from veto_pl.functional.units import Units, spread_logp, unit_sums
from veto_pl.objectives.scoring import Scoring
from veto_pl.objectives.token_kernel import TokenLoss
from veto_pl.objectives.unit_kernels import CreditKernel, ScoreKernel, UnitKernel
from veto_pl.seams import Divergence, LossOutput, Sequences, Stat, Step


class UnitLoss(TokenLoss, Protocol):
    """What scoring asks of an objective over units; `SimCT` says what each of them means."""

    @property
    def divergence(self) -> Divergence:
        """Return what compares student and teacher."""
        ...

    @property
    def score(self) -> Score:
        """Return what is averaged over a unit."""
        ...

    @property
    def shared(self) -> int | None:
        """Return how many shared ids are outcomes."""
        ...

    @property
    def chunk_rows(self) -> ChunkRows:
        """Return the rows of a chunk of logits."""
        ...

    @property
    def compile(self) -> Compile:
        """Return whether kernels are compiled."""
        ...


@dataclass(frozen=True)
class Spoken:
    """One side of a text.

    Args:
        hidden: [n, D] hidden states at the positions that predict its tokens.
        head: of the model.
        token_ids: [n] int64, the tokens.
    """

    hidden: Tensor
    head: Head
    token_ids: Tensor


class UnitScoring:
    """One micro-batch of units under one objective.

    The tokens of both are scored first. Then the first position of each unit is compared, which needs the scores of all
    its tokens; and what is found there is the credit of the unit's other tokens. So the student's rows go through the
    head twice, and the first positions of the teacher's.

    Args:
        objective: what is computed.
        sequences: the rollout, of whose N tokens each counts.
        units: of these tokens and of the teacher's Nt.
        step: where training stands.
    """

    def __init__(self, objective: UnitLoss, sequences: Sequences, units: Units, step: Step) -> None:
        self.objective, self.units = objective, units
        self.scoring = Scoring(objective, sequences, step)

    def run(self, hidden: Tensor, head: Head, teacher: Spoken) -> tuple[Tensor, LossOutput]:
        """Return the total with its graph, and everything that is logged.

        Args:
            hidden: [N, D] hidden states of the student.
            head: of the student.
            teacher: what the teacher has read.
        """
        student = Spoken(hidden, head, self.scoring.token_ids)
        mine, theirs = self._token_scores(student), self._token_scores(teacher)
        given = self._given(student, teacher, mine, theirs)
        at_first, others = self._streams(student, teacher)
        kernel = UnitKernel(
            self.objective.divergence, self.objective.temperature, self.objective.score, self.objective.shared
        )
        if not torch.is_grad_enabled():
            output = self._output(at_first.scores(kernel, given), mine, theirs)
            return output.terms["loss"].total, output
        scores, of_first = at_first.gradients(kernel, given)
        output = self._output(scores, mine, theirs)
        _, of_others = others.gradients(
            CreditKernel(self.objective.temperature, self.objective.score), self._credits(scores["credit"])
        )
        gradients = self._joined(hidden, of_first, of_others)
        output = self.scoring._with_gradient_faults(output, gradients.hidden)
        return gradients.attach(output.terms["loss"].total, hidden, head), output

    def _token_scores(self, side: Spoken) -> dict[str, Tensor]:
        """Return what `ScoreKernel` finds at each token of a side, [n] each, without graph."""
        kernel = ScoreKernel(self.objective.temperature, self.objective.score)
        with torch.no_grad():
            return self._stream(side.hidden.detach(), side.head).scores(kernel, {"token_ids": side.token_ids})

    def _given(
        self, student: Spoken, teacher: Spoken, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Return what `UnitKernel` reads beside the logits of the first positions, [U] each."""
        units, (first, their_first), (size, their_size) = self.units, self.units.first, self.units.sizes
        return {
            "token_ids": student.token_ids[first],
            "student_score": unit_sums(mine["score"], units.student, units.count) / size,
            "teacher_score": unit_sums(theirs["score"], units.teacher, units.count) / their_size,
            "student_normaliser": mine["normaliser"][first],
            "teacher_normaliser": theirs["normaliser"][their_first],
            "listed": listed_units(student.token_ids, teacher.token_ids, units),
            "size": size,
            "by_loss": self._weights()[first],
        }

    def _weights(self) -> Tensor:
        """Return the derivative [N] of the batch's loss in the loss of each token, which does not depend on it."""
        zeros = torch.zeros(len(self.scoring.token_ids), device=self.scoring.token_ids.device)
        with torch.enable_grad():
            losses = zeros.clone().requires_grad_()
            output = self.scoring.reduce({"loss": losses, "student_logp": zeros, "teacher_logp": zeros})
            (weights,) = torch.autograd.grad(output.terms["loss"].total, losses)
        return weights

    def _streams(self, student: Spoken, teacher: Spoken) -> tuple[RowStream, RowStream]:
        """Return the first positions of the units, with the teacher's, and the student's other ones."""
        first, their_first = self.units.first
        head = SharedHead(teacher.head, self.units, student.head.vocab_size)
        return (
            self._stream(_rows(student.hidden, first), student.head, teacher.hidden[their_first], head),
            self._stream(_rows(student.hidden, self.units.others), student.head),
        )

    def _stream(self, *sides: Any) -> RowStream:
        return RowStream(*sides, chunk_rows=self.objective.chunk_rows, compiled=self.objective.compile)

    def _credits(self, credit: Tensor) -> dict[str, Tensor]:
        """Return what `CreditKernel` reads: the credit of each token that is the first of no unit; 0 without a unit."""
        others = self.units.others
        of_all = torch.cat([credit.new_zeros(1), credit])[self.units.student[others] + 1]
        return {"token_ids": self.scoring.token_ids[others], "credit": of_all}

    def _joined(self, hidden: Tensor, of_first: Gradients, of_others: Gradients) -> Gradients:
        """Return the gradients of all rows together; the head's are added up."""
        together = None
        if of_first.hidden is not None and of_others.hidden is not None:
            together = torch.empty_like(hidden, dtype=of_first.hidden.dtype)
            together[self.units.first[0]], together[self.units.others] = of_first.hidden, of_others.hidden
        parameters = zip(of_first.parameters, of_others.parameters, strict=True)
        return Gradients(together, tuple(None if a is None or b is None else a.add_(b) for a, b in parameters))

    def _output(
        self, scores: Mapping[str, Tensor], mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
    ) -> LossOutput:
        """Sum what was found at the first positions, [U] each, over the batch, per token of the student."""
        first, count = self.units.first[0], len(self.scoring.token_ids)
        known = {name: value for name, value in scores.items() if name == "loss" or name.startswith("metric/")}
        placed = {name: value.new_zeros(count).index_copy(0, first, value) for name, value in known.items()}
        placed |= {
            "student_logp": mine["logp"],
            "teacher_logp": spread_logp(mine["logp"], theirs["logp"], self.units),
            "metric/entropy": mine["entropy"],
            "metric/aligned": (self.units.student >= 0).to(mine["logp"].dtype),
        }
        output = self.scoring.reduce(placed)
        units = torch.full_like(output.terms["loss"].weight, float(self.units.count))
        metrics = {
            "one_to_one": Stat(self.units.single.sum().to(units.dtype), units),
            "shared_mass": Stat(scores["shared_mass"].sum(), units),
        }
        return replace(output, metrics={**output.metrics, **metrics})


def _rows(hidden: Tensor, index: Tensor) -> Tensor:
    """Return some rows of the hidden states, whose gradient is formed if theirs is."""
    return hidden.detach()[index].requires_grad_(hidden.requires_grad)
