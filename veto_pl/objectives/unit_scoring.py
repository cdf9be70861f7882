"""How a loss over units is evaluated: two tokenisations of the same text through their heads, one gradient back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from veto_pl.objectives.heard import Heard
from veto_pl.objectives.scoring import Scoring
from veto_pl.objectives.token_kernel import TokenLoss
from veto_pl.objectives.unit_kernels import CreditKernel, ScoreKernel, UnitKernel
from veto_pl.objectives.voices import Voice
from veto_pl.seams import Divergence, LossOutput, Stat, Step


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


@dataclass(frozen=True)
class _Found:
    """What comparing the student with one teacher has found.

    Args:
        scores: of `UnitKernel`, [U] each.
        logp: [Nt] of the teacher's tokens.
        at: [U] and [N - U], the student's tokens whose rows have been differentiated.
        gradients: of these rows; none without a graph.
    """

    scores: Mapping[str, Tensor]
    logp: Tensor
    at: tuple[Tensor, Tensor]
    gradients: tuple[Gradients, ...] = ()


class UnitScoring:
    """One micro-batch of units under one objective.

    The tokens of student and teachers are scored first. Then the first position of each unit is compared, which needs
    the scores of all its tokens; and what is found there is the credit of the unit's other tokens. So the student's
    rows go through the head twice, and the first positions of each teacher's. With several teachers the losses of a
    token are added up by their weights, and so are the gradients.

    Args:
        objective: what is computed.
        heard: the rollout, of whose N tokens each counts.
        units: of each reading, of its tokens and of its teacher's.
        step: where training stands.
    """

    def __init__(self, objective: UnitLoss, heard: Heard, units: Sequence[Units], step: Step) -> None:
        self.objective, self.voices = objective, heard.voices
        self.scoring = Scoring(objective, heard.sequences, step)
        tokens = len(self.scoring.token_ids)
        own = zip(heard.voices.voices, units, strict=True)
        self.units = [of if voice.index is None else of.among(voice.index, tokens) for voice, of in own]

    def run(self, hidden: Tensor, head: Head, teachers: Sequence[Spoken]) -> tuple[Tensor, LossOutput]:
        """Return the total with its graph, and everything that is logged.

        Args:
            hidden: [N, D] hidden states of the student.
            head: of the student.
            teachers: what the teacher of each reading has read.
        """
        student = Spoken(hidden, head, self.scoring.token_ids)
        mine, weights = self._token_scores(student), self._weights()
        read = zip(self.voices.voices, self.units, teachers, strict=True)
        found = [
            self._compared(student, teacher, units, mine, weights * self._share(voice))
            for voice, units, teacher in read
        ]
        output = self._output(found, mine)
        total = output.terms["loss"].total
        if not torch.is_grad_enabled():
            return total, output
        gradients = self._joined(hidden, found)
        output = self.scoring._with_gradient_faults(output, gradients.hidden)
        return gradients.attach(total, hidden, head), output

    def _share(self, voice: Voice) -> Tensor:
        """Return a teacher's share of each of N tokens, 0 where it does not speak, [N]."""
        ones = torch.ones(len(self.scoring.token_ids), device=self.scoring.token_ids.device)
        own = voice.weighed(voice.of(ones))
        return own if voice.index is None else torch.zeros_like(ones).index_copy(0, voice.index, own)

    def _compared(
        self, student: Spoken, teacher: Spoken, units: Units, mine: Mapping[str, Tensor], weights: Tensor
    ) -> _Found:
        """Compare the student with one teacher, in units of all N tokens; `weights` is [N]."""
        theirs = self._token_scores(teacher)
        given = self._given(student, teacher, units, mine, theirs) | {"by_loss": weights[units.first[0]]}
        at_first, others = self._streams(student, teacher, units)
        kernel = UnitKernel(
            self.objective.divergence, self.objective.temperature, self.objective.score, self.objective.shared
        )
        at = units.first[0], units.others
        if not torch.is_grad_enabled():
            return _Found(at_first.scores(kernel, given), theirs["logp"], at)
        scores, of_first = at_first.gradients(kernel, given)
        later = CreditKernel(self.objective.temperature, self.objective.score)
        _, of_others = others.gradients(later, self._credits(scores["credit"], units))
        return _Found(scores, theirs["logp"], at, (of_first, of_others))

    def _token_scores(self, side: Spoken) -> dict[str, Tensor]:
        """Return what `ScoreKernel` finds at each token of a side, [n] each, without graph."""
        kernel = ScoreKernel(self.objective.temperature, self.objective.score)
        with torch.no_grad():
            return self._stream(side.hidden.detach(), side.head).scores(kernel, {"token_ids": side.token_ids})

    def _given(
        self, student: Spoken, teacher: Spoken, units: Units, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Return what `UnitKernel` reads beside the logits of the first positions, [U] each."""
        (first, their_first), (size, their_size) = units.first, units.sizes
        return {
            "token_ids": student.token_ids[first],
            "student_score": unit_sums(mine["score"], units.student, units.count) / size,
            "teacher_score": unit_sums(theirs["score"], units.teacher, units.count) / their_size,
            "student_normaliser": mine["normaliser"][first],
            "teacher_normaliser": theirs["normaliser"][their_first],
            "listed": listed_units(student.token_ids, teacher.token_ids, units),
            "size": size,
        }

    def _weights(self) -> Tensor:
        """Return the derivative [N] of the batch's loss in the loss of each token, which does not depend on it."""
        zeros = torch.zeros(len(self.scoring.token_ids), device=self.scoring.token_ids.device)
        with torch.enable_grad():
            losses = zeros.clone().requires_grad_()
            output = self.scoring.reduce({"loss": losses, "student_logp": zeros, "teacher_logp": zeros})
            (weights,) = torch.autograd.grad(output.terms["loss"].total, losses)
        return weights

    def _streams(self, student: Spoken, teacher: Spoken, units: Units) -> tuple[RowStream, RowStream]:
        """Return the first positions of the units, with the teacher's, and the student's other ones."""
        first, their_first = units.first
        head = SharedHead(teacher.head, units, student.head.vocab_size)
        return (
            self._stream(_rows(student.hidden, first), student.head, teacher.hidden[their_first], head),
            self._stream(_rows(student.hidden, units.others), student.head),
        )

    def _stream(self, *sides: Any) -> RowStream:
        return RowStream(*sides, chunk_rows=self.objective.chunk_rows, compiled=self.objective.compile)

    def _credits(self, credit: Tensor, units: Units) -> dict[str, Tensor]:
        """Return what `CreditKernel` reads: the credit of each token that is the first of no unit; 0 without a unit."""
        of_all = torch.cat([credit.new_zeros(1), credit])[units.student[units.others] + 1]
        return {"token_ids": self.scoring.token_ids[units.others], "credit": of_all}

    def _joined(self, hidden: Tensor, found: Sequence[_Found]) -> Gradients:
        """Return the gradients of all rows together; the head's are added up."""
        parts = [part for one in found for part in zip(one.at, one.gradients, strict=True)]
        known = [(at, part.hidden) for at, part in parts if part.hidden is not None]
        together = torch.zeros_like(hidden, dtype=known[0][1].dtype) if known else None
        for at, rows in known:
            assert together is not None, "it was made for these"
            together.index_add_(0, at, rows)
        first, *others = (part.parameters for _, part in parts)
        return Gradients(together, tuple(_sum(of) for of in zip(first, *others, strict=True)))

    def _output(self, found: Sequence[_Found], mine: Mapping[str, Tensor]) -> LossOutput:
        """Sum what was found at the first positions, [U] each, over the batch, per token of the student."""
        parts = [self._placed(one, units, mine) for one, units in zip(found, self.units, strict=True)]
        own = [{k: voice.of(v) for k, v in part.items()} for voice, part in zip(self.voices.voices, parts, strict=True)]
        placed = {**self.voices.joined(own), "student_logp": mine["logp"], "metric/entropy": mine["entropy"]}
        output = self.scoring.reduce(placed)
        kind = output.terms["loss"].weight
        count = torch.full_like(kind, float(sum(units.count for units in self.units)))
        single = sum((units.single.sum().to(kind.dtype) for units in self.units), torch.zeros_like(kind))
        mass = sum((one.scores["shared_mass"].sum() for one in found), torch.zeros_like(kind))
        metrics = {"one_to_one": Stat(single, count), "shared_mass": Stat(mass, count)}
        return replace(output, metrics={**output.metrics, **metrics, **self.voices.metrics(own)})

    def _placed(self, found: _Found, units: Units, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what was found for one teacher at the student's tokens, [N] each, 0 where it has no unit."""
        first, count = units.first[0], len(self.scoring.token_ids)
        known = {k: value for k, value in found.scores.items() if k == "loss" or k.startswith("metric/")}
        placed = {k: value.new_zeros(count).index_copy(0, first, value) for k, value in known.items()}
        placed["teacher_logp"] = spread_logp(mine["logp"], found.logp, units)
        return placed | {"metric/aligned": (units.student >= 0).to(mine["logp"].dtype)}


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of the gradients of one parameter, in the place of the first; None where it has none."""
    whole = gradients[0]
    for one in gradients[1:]:
        whole = None if whole is None or one is None else whole.add_(one)
    return whole


def _rows(hidden: Tensor, index: Tensor) -> Tensor:
    """Return some rows of the hidden states, whose gradient is formed if theirs is."""
    return hidden.detach()[index].requires_grad_(hidden.requires_grad)
