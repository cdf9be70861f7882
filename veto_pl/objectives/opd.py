"""On-policy distillation by policy gradient, plain and with a baseline."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from veto_pl.core.bounds import UnitInterval
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.advantages import FDivergence
from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import LARGEST, CentredLogRatio, LogRatio, WithReward
from veto_pl.parts.credit import (
    BoundedWithOutcome,
    DivergenceCredit,
    EarlyWeighted,
    LeastLikely,
    TeacherWeightedReward,
)
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Advantage, RolloutSource

__all__ = ["IWOPD", "OPD", "VOPD", "DistilledRL", "GammaOPD", "OPDPlus", "TailPenalty"]


@dataclass(frozen=True, kw_only=True)
class OPD(PolicyGradient):
    r"""On-policy distillation: the teacher scores the tokens that the student sampled.

    .. math:: A_t = \sum_{t' \ge t} \gamma^{t' - t} \left( \log p_T(y_{t'}) - \log p_S(y_{t'}) \right)
        + w\, (r - \bar r)

    Over the sampled token, the gradient at :math:`\gamma = 0` is that of :math:`\mathrm{KL}(p_S \Vert p_T)` at each
    token, the text before it held fixed. At :math:`\gamma = 1` it is that of the KL between whole completions. The mean
    reward :math:`\bar r` is taken over the completions of the prompt, see `WithReward`.

    Departures: the first publication ("On-Policy Distillation", Thinking Machines Lab, 2025) takes the log-ratio
    against the sampler's log-probability, which is the student's own up to the engine, and does not truncate the
    importance weights (`importance_cap: .inf`). Rewards are centred within the prompt, without a standard deviation.

    Args:
        discount: gamma in [0, 1]; 0 credits a token with its own log-ratio alone.
        reward_weight: w, how much the task's reward counts; 0 leaves rewards out.

    References:
        arXiv 2306.13649 (the on-policy reverse KL)
    """

    discount: UnitInterval = 0.0
    reward_weight: Annotated[float, Interval(ge=0, le=LARGEST)] = 0.0

    @classmethod
    def examples(cls) -> tuple["OPD", ...]:
        return cls(discount=0.9, reward_weight=0.5), cls()

    def credit(self) -> Advantage:
        """Return the log-ratio, with the reward where it counts."""
        ratio = LogRatio(self.discount)
        return WithReward(ratio, self.reward_weight) if self.reward_weight else ratio


@dataclass(frozen=True, kw_only=True)
class VOPD(PolicyGradient):
    r"""On-policy distillation with the log-ratio's mean as baseline, in closed form.

    .. math:: A_t = \log p_T(y_t) - \log p_S(y_t) + \mathrm{KL}(p_S \Vert p_T)_t

    The baseline does not depend on the sampled token, so the expected gradient is that of `OPD`, :math:`\nabla
    \mathrm{KL}(p_S \Vert p_T)`, with `top_k` too, as long as the importance weights are whole and the sampler leaves no
    id out. On the whole vocabulary, the mean square of the advantage is never larger than without it. The variance of
    the gradient is not always smaller: a large log-ratio on a token that the student is nearly sure of moves the logits
    little, and a baseline of its size adds noise to the other tokens. Of random pairs of distributions (independent
    normal logits) it is smaller for 30% over 2 ids, 57% over 5, and 99% over 50.

    Departures from the published code: importance weights are truncated at 5; there are no adapters, and no reward
    beside the log-ratio.

    Args:
        top_k: the baseline is taken on the student's k likeliest ids, both models renormalised; None takes all ids, 100
            is the paper's other choice.

    References:
        arXiv 2605.07865
    """

    top_k: int | None = None

    @classmethod
    def examples(cls) -> tuple["VOPD", ...]:
        return cls(top_k=8), cls(top_k=2), cls()

    def credit(self) -> Advantage:
        """Return the centred log-ratio."""
        return CentredLogRatio(self.top_k)


@dataclass(frozen=True, kw_only=True)
class GammaOPD(PolicyGradient):
    r"""On-policy distillation with discounted credit, whose sign the outcome decides.

    .. math:: \frac{A_t}{\overline{|A|} + |A_t|} + R, \qquad
        A_t = \sum_{t' \ge t} \gamma^{t' - t} \left( \log p_T(y_{t'}) - \log p_S(y_{t'}) \right)

    The discount lies between the KL of single tokens (0) and that of whole completions (1), whose variance grows with
    the square of the length. R is 1 for a correct completion and -1 for any other; the first term stays within (-1, 1).

    Departures: importance weights are truncated at 5, and correct means a reward of 1.

    Args:
        discount: gamma in [0, 1].
        outcome: whether R counts; without it the credit is A itself, and no rewards are needed.

    References:
        arXiv 2609.16937
    """

    discount: float = 0.99
    outcome: bool = True

    @classmethod
    def examples(cls) -> tuple["GammaOPD", ...]:
        return cls(), cls(outcome=False, discount=0.5)

    def credit(self) -> Advantage:
        """Return the discounted log-ratio, bounded where the outcome counts."""
        ratio = LogRatio(self.discount)
        return BoundedWithOutcome(ratio) if self.outcome else ratio


@dataclass(frozen=True, kw_only=True)
class IWOPD(PolicyGradient):
    r"""On-policy distillation whose earlier tokens weigh more, as what follows a disagreement says less and less.

    .. math:: A_t \left( 1 + \gamma \left( 1 - \frac{\sum_{i<t} |A_i|}{\sum_i |A_i|} \right) \right), \qquad
        A_t = \log p_T(y_t) - \log p_S(y_t)

    The first token counts :math:`1 + \gamma` times, the last about once. At :math:`\gamma = 0` it is `OPD`, to the bit.

    Departures: the log-ratio is that of the student that is trained, which is the sampler up to the engine, and
    importance weights are truncated at 5.

    Args:
        strength: gamma.

    References:
        arXiv 2606.22600
    """

    strength: float = 0.5

    def credit(self) -> Advantage:
        """Return the log-ratio, weighted by place."""
        return EarlyWeighted(LogRatio(), self.strength)


@dataclass(frozen=True, kw_only=True)
class OPDPlus(PolicyGradient):
    r"""On-policy distillation with the right credit for any of three divergences.

    .. math:: A_t = u f'(u) - f(u), \qquad u = p_T(y_t) / p_S(y_t)

    Over the sampled token the gradient is that of :math:`\mathrm{E}_{p_S} f(u)`. A reward :math:`-f(u)` that is held
    fixed, as in other trainers, lacks the first term, and is right for the reverse KL alone, where this is `OPD`.

    Departures: a constant is added to the credit so that it is 0 where the models agree, which changes no expected
    gradient; u is cut at a million; the paper compares the divergences, and the default is this package's choice.

    Args:
        f_divergence: `forward_kl`, KL(teacher || student); `reverse_kl`; or `jsd`.

    References:
        arXiv 2606.01039
    """

    f_divergence: FDivergence = "jsd"

    @classmethod
    def examples(cls) -> tuple["OPDPlus", ...]:
        return cls(), cls(f_divergence="forward_kl")

    def credit(self) -> Advantage:
        """Return the credit of the divergence."""
        return DivergenceCredit(self.f_divergence)


@dataclass(frozen=True, kw_only=True)
class DistilledRL(PolicyGradient):
    r"""Reinforcement learning from outcomes, in which a teacher says at which tokens a success was earned.

    .. math:: A_{i,t} = w_{i,t} \frac{r_i - \bar r}{\sigma_r}, \qquad
        w_{i,t} = \frac{\rho_{i,t}}{\exp \overline{\log \rho_i}}, \qquad
        \rho_{i,t} = \mathrm{clip}\left( \frac{p_T(y_{i,t})}{p_S(y_{i,t})}, \frac{1}{c}, c \right)

    for completions that are better than the mean of their prompt, and w = 1 for all others: what the teacher likes is
    never punished more. The weights of a completion have a geometric mean of 1. With :math:`c = 1` it is GRPO without
    its clipping, which never binds as there is one update per rollout.

    Departures: the standard deviation is that of the prompt's completions with tokens, biased, and a prompt whose
    completions are rewarded alike teaches nothing; importance weights are truncated at 5.

    Args:
        rollout: who writes the completions, several of each prompt.
        aggregation: `sequence` weighs every completion alike, as in the paper.
        cap: c, at least 1.

    References:
        arXiv 2607.17247
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0, num_completions=8))
    aggregation: Aggregation = "sequence"
    cap: float = 3.0

    @classmethod
    def examples(cls) -> tuple["DistilledRL", ...]:
        return (cls(rollout=FromStudent(Sampling(num_completions=4))),)

    def credit(self) -> Advantage:
        """Return the standardised reward, weighted by the teacher."""
        return TeacherWeightedReward(self.cap)


@dataclass(frozen=True, kw_only=True)
class TailPenalty(PolicyGradient):
    r"""A control without a teacher: every unlikely token that the student sampled is made less likely.

    .. math:: A_t = a < 0 \text{ for the least likely tokens of a completion, and } 0 \text{ for the others}

    It is found to do about as well as on-policy distillation on long reasoning, which therefore has to beat it before
    a gain is the teacher's. It teaches nothing that the student does not know: a student that is always right is
    sharpened like one that is always wrong.

    Departures: unlikely is read as the least likely fifth of each completion, rounded up, so that the same tokens count
    however a batch is split; the denominator stays the number of all tokens; importance weights are truncated at 5.

    Args:
        penalty: a, below 0. Above it, the paper's students collapse.
        share: of the tokens of a completion, in (0, 1].

    References:
        arXiv 2608.31046
    """

    needs_teacher = False

    penalty: float = -0.5
    share: float = 0.2

    def credit(self) -> Advantage:
        """Return the penalty for the least likely tokens, and 0 for the others."""
        if not self.penalty < 0:
            raise ConfigurationError(f"`TailPenalty.penalty` must be below 0, got {self.penalty}.")
        return LeastLikely(self.penalty, self.share)
