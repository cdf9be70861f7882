"""DistiLLM: skew KL with adaptive replay; DistiLLM-2: a skew KL of either direction for the completions of either."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from veto_pl.core.ranks import sum_over_ranks
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.advantages import row_mean
from veto_pl.functional.divergences import forward_kl, log_mixture, reverse_kl
from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.combine import Sum
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.token_objective import ChunkRows, Compile, TokenObjective
from veto_pl.parts.divergences import SkewKL
from veto_pl.parts.schedules import AtMost, Linear, value_at
from veto_pl.rollouts import AdaptiveReplay, FromStudent, FromTeacher, Sampling
from veto_pl.seams import (
    AnyObjective,
    Divergence,
    Law,
    LossOutput,
    Models,
    Objective,
    Rollouts,
    RolloutSource,
    Schedule,
    Step,
)
from veto_pl.seams.tokens import TokenGrid, TokenRows

__all__ = ["AdaptiveSkew", "DistiLLM", "DistiLLM2"]


@dataclass(frozen=True, kw_only=True)
class DistiLLM(Distill):
    r"""A skew KL on the task's completions, and on the student's as far as validation asks for them.

    .. math:: \mathrm{KL}(p_T \Vert \alpha p_T + (1 - \alpha) p_S)

    Departures from the published code: it watches the likelihood of references, this `validation/forward_kl`; the first
    validation of the fit is the first to compare with; rows are fresh while the buffer is empty, not while it is not
    full. The likelihood of a corpus, which the code can add, is another term of a `Sum`.

    Args:
        divergence: `SkewKL` or `SkewReverseKL`.
        rollout: who writes the completions.

    References:
        arXiv 2402.03898
    """

    divergence: Divergence | None = SkewKL(0.1)
    rollout: RolloutSource = AdaptiveReplay()


@dataclass(frozen=True, kw_only=True)
class AdaptiveSkew(TokenObjective):
    r"""A skew KL whose skew is each completion's own: the more, the further its writer is ahead of the other.

    .. math:: \alpha = \mathrm{clip}\!\left( 1 - (1 - \alpha_0) \frac{m}{d + 10^{-5}},\; \alpha_{min},\; \alpha_0
        \right), \qquad d = \bar p_T(y) - \bar p_S(y)

    :math:`\bar p(y)` is the geometric mean of the probabilities of the completion's tokens, and m the mean of d over
    the completions of the micro-batch, on all ranks; `reverse` changes the sign of d. In the reverse direction the
    student inside the mixture is held fixed, as in the published code. The skew is held fixed.

    Args:
        direction: `forward` is KL(teacher || mixture), `reverse` is KL(student || mixture).
        alpha: the largest skew.
        smallest: the smallest.

    References:
        arXiv 2503.07067
    """

    direction: Literal["forward", "reverse"] = "forward"
    alpha: float = 0.1
    smallest: float = 0.01

    laws = frozenset[Law]()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_skew(self)

    @classmethod
    def examples(cls) -> tuple["AdaptiveSkew", ...]:
        return cls(), cls(direction="reverse", rollout=FromStudent())

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Refuse every stored or served teacher."""
        raise ConfigurationError(
            f"`AdaptiveSkew` needs a live teacher, not {teacher}: the skew depends on every token."
        )

    def look_ahead(self, grid: TokenGrid) -> Mapping[str, Tensor]:
        """Compute the skew of each completion, at all of its tokens, [B, S]."""
        count = grid.mask.sum(1)
        means = [row_mean(logp, grid.mask).exp() for logp in (grid.teacher_logp, grid.student_logp)]
        gap = means[0] - means[1] if self.direction == "forward" else means[1] - means[0]
        total, number = sum_over_ranks(torch.stack([gap.masked_fill(count == 0, 0.0).sum(), (count > 0).sum()]))
        skew = 1 - (1 - self.alpha) * total / number.clamp_min(1) / (gap + 1e-5)
        return {"alpha": skew.clamp(self.smallest, self.alpha)[:, None].expand_as(grid.mask)}

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the skew KL of each token, [n]."""
        student, teacher, alpha = rows.student_logp, rows.required_teacher_logp(), rows.ahead["alpha"][:, None]
        if self.direction == "forward":
            return forward_kl(log_mixture(teacher, student, alpha), teacher)
        return reverse_kl(student, log_mixture(student.detach(), teacher, alpha))

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """Add the skew."""
        return {**super().token_metrics(rows), "alpha": rows.ahead["alpha"]}


@dataclass(frozen=True, kw_only=True)
class DistiLLM2(Objective):
    r"""The teacher's completions are made likelier, and the student's own less likely where the teacher disagrees.

    .. math:: (2 - \beta)\, \mathrm{SKL}(y_T) + \beta\, \mathrm{SRKL}(y_S)

    with the skew of `AdaptiveSkew`. Each term is the mean over its own completions of the mean over their tokens.

    Departures: both write afresh at every step, where the paper collects completions once per epoch from the student
    of the epoch before; and the mean gap m is that of the micro-batch. Every completion weighs alike, as in the code.

    Args:
        teacher: writes the completions of the forward term.
        student: writes those of the reverse term.
        beta: weight of the reverse term, a number in [0, 2] or a schedule.
        alpha: the largest skew.
        smallest: the smallest.
        aggregation: `sequence` weighs every completion alike, as the published code does; `token` every token.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.

    References:
        arXiv 2503.07067
    """

    teacher: RolloutSource = FromTeacher(Sampling(temperature=1.0))
    student: RolloutSource = FromStudent(Sampling(temperature=1.0))
    beta: Annotated[float, Interval(ge=0, le=2)] | Schedule = 1.0
    alpha: float = 0.1
    smallest: float = 0.01
    aggregation: Aggregation = "sequence"
    chunk_rows: ChunkRows = "auto"
    compile: Compile = "auto"
    composition: Sum = field(init=False)

    laws = frozenset[Law]()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_skew(self)
        terms: dict[str, AnyObjective] = {
            "teacher": self._term(rollout=self.teacher, direction="forward"),
            "student": self._term(rollout=self.student, direction="reverse"),
        }
        object.__setattr__(self, "composition", Sum(terms=terms))

    @classmethod
    def examples(cls) -> tuple["DistiLLM2", ...]:
        return cls(beta=Linear(1.0, 1.5)), cls(beta=AtMost(Linear(1.0, 2.0), 1.5))

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the rollouts of the teacher and of the student."""
        return self.composition.sources

    def active(self, step: Step) -> Objective:
        """Return the weighted sum of this step."""
        beta = value_at(self.beta, step.index, step.total)
        return replace(self.composition, weights={"teacher": 2 - beta, "student": beta}).active(step)

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Compute the terms of the weighted sum."""
        return self.active(step).loss(rollouts, models, step)

    def _term(self, rollout: RolloutSource, direction: Literal["forward", "reverse"]) -> AdaptiveSkew:
        return AdaptiveSkew(
            rollout=rollout,
            direction=direction,
            alpha=self.alpha,
            smallest=self.smallest,
            aggregation=self.aggregation,
            chunk_rows=self.chunk_rows,
            compile=self.compile,
        )


def _check_skew(objective: AdaptiveSkew | DistiLLM2) -> None:
    if not 0 < objective.smallest <= objective.alpha < 1:
        raise ConfigurationError(
            f"`{type(objective).__name__}.alpha` and `.smallest` must lie in (0, 1), the second at most at the first, "
            f"got {objective.alpha} and {objective.smallest}."
        )
