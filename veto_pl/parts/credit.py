"""Credit of sampled tokens that reshapes the log-ratio or the reward, or asks no teacher at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from veto_pl.core.bounds import AboveZero, Finite, NonNegative, PositiveShare
from veto_pl.core.ranks import sum_over_ranks
from veto_pl.functional.advantages import (
    FDivergence,
    centred,
    divergence_credit,
    most_uncertain,
    share_before,
    softsign,
)
from veto_pl.functional.contrast import contrast_of_hints, two_path_credit
from veto_pl.functional.order import group_advantage, group_standardised
from veto_pl.functional.step_weights import step_weights
from veto_pl.parts.advantages import CentredLogRatio, LogRatio
from veto_pl.seams import Advantage, Law
from veto_pl.seams.tokens import TokenGrid, TokenRows


@dataclass(frozen=True)
class Reshaped(Advantage):
    """Another advantage in another shape; subclasses say which. What the other one asks for is passed on.

    Args:
        of: the other advantage.
    """

    of: Advantage = LogRatio()

    def __post_init__(self) -> None:
        super().__post_init__()
        for need in ("needs_reference", "needs_rewards", "compares_completions", "needs_every_id"):
            object.__setattr__(self, need, getattr(self, need) or getattr(self.of, need))

    @property
    def laws(self) -> frozenset[Law]:
        """Return the laws of the other advantage: each row is reshaped alone."""
        return self.of.laws

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        return self.of.scores(rows)


@dataclass(frozen=True)
class EarlyWeighted(Reshaped):
    r"""Earlier tokens weigh more: the less another credit has come before, the more a token counts.

    .. math:: A_t \left( 1 + \gamma \left( 1 - \frac{\sum_{i<t} |A_i|}{\sum_i |A_i|} \right) \right)

    Args:
        of: the other advantage, A.
        strength: gamma; the first token counts 1 + gamma times.

    References:
        arXiv 2606.22600
    """

    strength: NonNegative = 0.5

    @classmethod
    def examples(cls) -> tuple["EarlyWeighted", ...]:
        return cls(), cls(CentredLogRatio(2), 1.0), cls(strength=0.0)

    def __call__(self, grid: TokenGrid) -> Tensor:
        credit = self.of(grid)
        return credit * (1 + self.strength * (1 - share_before(credit.abs(), grid.mask)))


@dataclass(frozen=True)
class StepWeighted(Reshaped):
    r"""Another credit, less of it on turns at which the student is further from the teacher than at the first.

    .. math:: A_t\, w_{k(t)}, \qquad w_1 = 1, \quad
        w_k = \min\left( \frac{d_1 + \epsilon}{d_k + \epsilon},\ 1 + \delta \right)

    with the mean size :math:`d_k` of the log-ratio over the agent's k-th turn. A completion of a single turn keeps its
    credit. Where the first turn agrees with the teacher to the last digit, all later ones weigh next to nothing.

    Args:
        of: the other credit, A.
        cap: delta; 0 never weighs a turn more than the first.

    References:
        arXiv 2605.07725
    """

    cap: Annotated[float, Interval(ge=0, lt=math.inf)] = 0.2

    @classmethod
    def examples(cls) -> tuple["StepWeighted", ...]:
        return cls(), cls(CentredLogRatio(2), 0.0)

    def __call__(self, grid: TokenGrid) -> Tensor:
        return self.of(grid) * step_weights(grid.log_ratio(), grid.mask, grid.turn_ids, grid.episodes, self.cap)


@dataclass(frozen=True)
class Centred(Reshaped):
    r"""Another credit minus its mean over the tokens of the micro-batch, on all ranks together.

    .. math:: A_t - \bar A

    Args:
        of: the other credit, A.

    References:
        arXiv 2610.10460
    """

    @property
    def laws(self) -> frozenset[Law]:
        """Return what holds with this credit: the mean couples the rows of a micro-batch."""
        return frozenset()

    def of_one_token(self) -> Advantage:
        """Return the other credit: in expectation the mean, a baseline, does not move the gradient."""
        return self.of

    def __call__(self, grid: TokenGrid) -> Tensor:
        return centred(self.of(grid), grid.mask, all_reduce=sum_over_ranks)


@dataclass(frozen=True)
class HintContrast(Advantage):
    r"""The outcome of a completion, stronger at tokens that a right hint makes likelier than wrong hints do.

    .. math:: c_t = \log p_T(y_t \mid h^+) - \log \frac1K \sum_k p_T(y_t \mid h^-_k), \qquad
        e_t = \mathrm{clip}(s \tanh(c_t / \tau), -b, b)

    with GRPO's advantage A of the completion. A token with :math:`|e_t| > \delta` is selected: it has A + e, but never
    a credit of the other sign, and 0 where A is 0. Others have A. In each completion the selected tokens and the others
    are averaged by themselves, and added by 1 and :math:`\eta`, as long as the objective aggregates by `sequence`. A
    completion of which the right hint or every wrong one is missing has A alone.

    Args:
        strength: s; 0 is GRPO.
        scale: tau, in nats.
        limit: b.
        threshold: delta.
        weight: eta, of the selected tokens.

    References:
        arXiv 2606.11709
    """

    strength: NonNegative = 0.5
    scale: AboveZero = 0.02
    limit: NonNegative = 2.0
    threshold: NonNegative = 0.02
    weight: NonNegative = 1.0

    needs_rewards = True
    compares_completions = True

    def __call__(self, grid: TokenGrid) -> Tensor:
        outcome = group_advantage(grid.required_rewards(), grid.prompt_rows, grid.counted_once(grid.mask.any(1)))
        told = grid.required_contrast_logp()
        contrast = contrast_of_hints(grid.teacher_logp, told)
        shift = (self.strength * (contrast / self.scale).tanh()).clamp(-self.limit, self.limit)
        chosen = (shift.abs() > self.threshold) & grid.mask
        return two_path_credit(outcome[:, None], shift, chosen, grid.mask, self.weight)


@dataclass(frozen=True)
class BoundedWithOutcome(Reshaped):
    r"""The outcome decides whether a completion is reinforced, and another advantage how much each token is.

    .. math:: \frac{A_t}{\overline{|A|} + |A_t|} + R, \qquad R = \pm 1

    with the mean size of A over the completion. The first term stays within (-1, 1), so the sign is that of R, which is
    1 where the task's reward is 1, and -1 elsewhere.

    Args:
        of: the other advantage, A.

    References:
        arXiv 2609.16937, equation 8
    """

    needs_rewards = True

    def __call__(self, grid: TokenGrid) -> Tensor:
        outcome = 2.0 * (grid.required_rewards() == 1) - 1.0
        return softsign(self.of(grid), grid.mask) + outcome[:, None]


@dataclass(frozen=True)
class DivergenceCredit(Advantage):
    r"""Credit whose expected gradient is that of an f-divergence of teacher and student.

    .. math:: A_t = u f'(u) - f(u), \qquad u = p_T(y_t) / p_S(y_t)

    Args:
        divergence: `forward_kl`, `reverse_kl` (the log-ratio), or `jsd`.

    References:
        arXiv 2606.01039
    """

    divergence: FDivergence = "jsd"

    @classmethod
    def examples(cls) -> tuple["DivergenceCredit", ...]:
        return cls(), cls("forward_kl"), cls("reverse_kl")

    def __call__(self, grid: TokenGrid) -> Tensor:
        return divergence_credit(grid.log_ratio(), self.divergence)


@dataclass(frozen=True)
class TeacherWeightedReward(Advantage):
    r"""The reward of a completion, standardised within its prompt; a teacher says at which tokens success was earned.

    .. math:: A_{i,t} = w_{i,t} \frac{r_i - \bar r}{\sigma_r}, \qquad
        w_{i,t} \propto \mathrm{clip}\left( \frac{p_T(y_{i,t})}{p_S(y_{i,t})}, \frac{1}{c}, c \right)

    with a geometric mean of w of 1 in each completion that is better than the mean; w is 1 in all others.

    Args:
        cap: c, at least 1; 1 leaves the teacher out.

    References:
        arXiv 2607.17247
    """

    cap: Annotated[float, Interval(ge=1, lt=math.inf)] = 3.0

    needs_rewards = True
    compares_completions = True

    def __call__(self, grid: TokenGrid) -> Tensor:
        counted = grid.counted_once(grid.mask.any(1))
        better = group_standardised(grid.required_rewards(), grid.prompt_rows, counted)[:, None]
        ratio = grid.log_ratio().clamp(-math.log(self.cap), math.log(self.cap))
        weight = (ratio - grid.completion_mean(ratio, grid.mask)[:, None]).exp()
        return better * weight.where(better > 0, weight.new_ones(()))


@dataclass(frozen=True)
class LeastLikely(Advantage):
    """One fixed credit for the least likely tokens of each completion, and none for the others; no teacher is asked.

    Args:
        credit: of these tokens.
        share: of the tokens of a completion, in (0, 1].

    References:
        arXiv 2608.31046, section 3.2
    """

    credit: Finite = -0.5
    share: PositiveShare = 0.2

    def __call__(self, grid: TokenGrid) -> Tensor:
        student = grid.student_logp.detach()
        return self.credit * most_uncertain(-student, grid.mask, self.share).to(student.dtype)
