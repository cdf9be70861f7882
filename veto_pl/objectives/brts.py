"""BRTS: the student's own text, and the best of several by the teacher."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from veto_pl.core.bounds import Count, NonNegative
from veto_pl.core.sampling import SEVERAL
from veto_pl.objectives.combine import Sum
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.token_objective import ChunkRows, Compile
from veto_pl.parts.divergences import ForwardKL, ReverseKL
from veto_pl.parts.supports import TopK, below_vocabulary
from veto_pl.rollouts import BestTeacher, FromStudent, Sampling
from veto_pl.seams import (
    AnyObjective,
    LossOutput,
    Mistake,
    Models,
    Objective,
    Rollouts,
    RolloutSource,
    Schedule,
    Setup,
    Stat,
    Step,
    Template,
)

__all__ = ["BRTS"]


@dataclass(frozen=True, kw_only=True)
class BRTS(Objective):
    r"""Reverse KL on the student's rollout, and forward KL on a chosen completion of the teacher.

    .. math:: L = \mathrm{KL}(p_S \Vert p_T)_{t,\; y \sim p_S} + \lambda\, \mathrm{KL}(p_T \Vert p_S)_{t,\; y'}

    y' is the correct one of several completions of the teacher that is closest to the student's text; `BestTeacher`
    says how it is found. Each KL is over the likeliest ids of the model that wrote the text, with one outcome for all
    others. The share of prompts for which y' is correct is logged as `train/teacher_correct`.

    Departures from the published code: it switches the second term off unless told otherwise, and this class has the
    paper's weight; the ids outside the top k are one more outcome; the second try reads the whole reference, unless
    `hint` names another field.

    Args:
        sampling: how the student samples.
        teacher_sampling: how the teacher samples; `num_completions` are tried for each prompt.
        teacher_weight: lambda; 0 removes the term and its rollout.
        top_k: the ids of each KL, and of the overlap.
        hint: the teacher's prompt for the second try, as in `BestTeacher`.
        template: makes the text of the hinted prompt; None takes the template of the data.
        fallback: what is done where no completion is correct, as in `BestTeacher`.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.

    References:
        arXiv 2605.09725
    """

    sampling: Sampling = Sampling()
    teacher_sampling: Sampling = BestTeacher.sampling
    teacher_weight: NonNegative = 10.0
    top_k: Count = 16
    hint: str = BestTeacher.hint
    template: Template | None = None
    fallback: Literal["overlap", "skip"] = "overlap"
    chunk_rows: ChunkRows = "auto"
    compile: Compile = "auto"
    composition: Sum = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        best = self.best_teacher
        own = Distill(
            rollout=FromStudent(self.sampling),
            support=TopK(self.top_k, of="student"),
            divergence=ReverseKL(),
            chunk_rows=self.chunk_rows,
            compile=self.compile,
        )
        terms: dict[str, AnyObjective] = {"student": own}
        weights: dict[str, float | Schedule] = {}
        if self.teacher_weight:
            terms["teacher"] = Distill(
                rollout=best, support=TopK(self.top_k, of="teacher"), chunk_rows=self.chunk_rows,
                compile=self.compile, divergence=ForwardKL(),
            )  # fmt: skip
            weights["teacher"] = self.teacher_weight
        object.__setattr__(self, "composition", Sum(terms=terms, weights=weights))

    @classmethod
    def examples(cls) -> tuple["BRTS", ...]:
        return (cls(teacher_sampling=SEVERAL, top_k=4, hint="{completion}>{prompt}"),)

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield a mistake where `top_k` leaves nothing for the last outcome."""
        yield from below_vocabulary(setup, f"{path}.init_args.top_k", self.top_k, "Lower it.")

    @property
    def best_teacher(self) -> BestTeacher:
        """Return the source that writes the text of the second term."""
        return BestTeacher(
            sampling=self.teacher_sampling,
            student=FromStudent(self.sampling),
            top_k=self.top_k,
            hint=self.hint,
            template=self.template,
            fallback=self.fallback,
        )

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the student's rollout, and the teacher's where its term counts."""
        return self.composition.sources

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Compute the terms of the composition, and how often the teacher was right."""
        output = self.composition.loss(rollouts, models, step)
        chosen = rollouts.get(self.best_teacher)
        if chosen is None or chosen.rewards is None:
            return output
        correct = (chosen.rewards == 1).float()
        right = Stat(correct.sum(), correct.new_tensor(float(len(correct))))
        return replace(output, metrics={**output.metrics, "teacher_correct": right})
