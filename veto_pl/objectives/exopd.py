"""On-policy distillation beyond the teacher, and how far it may go."""

import math
from dataclasses import dataclass, field

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.extrapolation import lambda_star, largest_lambda
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import Extrapolated
from veto_pl.parts.schedules import AtMost, Linear, value_at
from veto_pl.seams import Advantage, Schedule, Step

__all__ = ["ExOPD", "ListOPD"]


@dataclass(frozen=True, kw_only=True)
class ExOPD(PolicyGradient):
    r"""On-policy distillation that extrapolates from a reference B through the teacher T.

    .. math:: A_t = \lambda \left( \log p_T - \log p_B \right)(y_t) - \left( \log p_S - \log p_B \right)(y_t)

    Over the sampled token, the gradient is that of :math:`\mathrm{KL}(p_S \Vert Q)` with :math:`Q \propto p_T^\lambda
    p_B^{1 - \lambda}`. At :math:`\lambda = 1` it is `OPD`, to the bit, whatever the reference says. The reference is
    the student's start, or the model that the teacher was trained from.

    Several teachers, as in the paper, are a `panel`: `Routed` by the rows, with one reference for all.

    Departures from the published code: one update per rollout.

    Args:
        extrapolation: lambda, a number or a schedule.

    References:
        arXiv 2602.12125
    """

    extrapolation: float | Schedule = 1.25

    @classmethod
    def examples(cls) -> tuple["ExOPD", ...]:
        return cls(extrapolation=Linear(1.0, 1.25)), cls(temperature=2.0)

    def credit(self) -> Advantage:
        """Return the extrapolated log-ratio."""
        return Extrapolated(self.extrapolation)


@dataclass(frozen=True, kw_only=True)
class ListOPD(ExOPD):
    r"""`ExOPD` that stays below the bound from which near-certain tokens, such as those of a format, are lost.

    .. math:: \lambda \le \max\left(1,\ (1 - \epsilon)\, \lambda^*(p, b, c)\right)

    with the bound :math:`\lambda^*` of `veto_pl.functional.extrapolation.lambda_star`, which is derived there, and the
    truncation c of the importance weights, `importance_cap`; but never below 1, where the student is drawn to the
    teacher itself. Measure p and b on the tokens that the teacher is surest of: the smallest bound binds.

    Departures: the paper's settings (c, p, the learning rate) and its code were not found. The bound is derived here,
    and the defaults are those of `ExOPD`, without a guard.

    Args:
        modal_probability: p in (0, 1), the probability that the teacher gives the token that has to be kept; None
            leaves lambda unguarded.
        warm_start_mass: b in (0, 1), the probability that the student's start gives it.
        margin: epsilon in [0, 1), the distance that is kept from the bound.

    References:
        arXiv 2605.08737
    """

    modal_probability: float | None = None
    warm_start_mass: float = 0.5
    margin: float = 0.02
    capped_extrapolation: float | Schedule = field(init=False)

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "capped_extrapolation", self.capped(self.extrapolation))
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["ListOPD", ...]:
        return cls(extrapolation=Linear(1.0, 2.0), modal_probability=0.99), cls()

    @property
    def guard(self) -> float:
        """Return the largest lambda that is allowed; infinite without a guard."""
        p = self.modal_probability
        return math.inf if p is None else self.bound(p, self.warm_start_mass)

    def bound(self, p: float, b: float) -> float:
        """Compute max(1, (1 - margin) lambda*(p, b, c)); infinite where the importance weights are not truncated."""
        return largest_lambda(lambda_star(p, b, self.importance_cap or math.inf), self.margin)

    def capped(self, extrapolation: float | Schedule) -> float | Schedule:
        """Return the same lambda, or schedule of lambda, but never above the guard."""
        if isinstance(extrapolation, Schedule):
            return extrapolation if self.guard == math.inf else AtMost(extrapolation, self.guard)
        return min(extrapolation, self.guard)

    def extrapolation_at(self, step: Step) -> float:
        """Return the lambda of a step, capped."""
        return value_at(self.capped_extrapolation, step.index, step.total)

    def credit(self) -> Advantage:
        """Return the extrapolated log-ratio, capped."""
        return Extrapolated(self.capped_extrapolation)

    def _check(self) -> None:
        p, b, cap = self.modal_probability, self.warm_start_mass, self.importance_cap
        Extrapolated(self.extrapolation)  # refuses what a cap would hide
        checks = {
            "modal_probability": (p is None or 0 < p < 1, "lie in (0, 1), or be null"),
            "warm_start_mass": (0 < b < 1, "lie in (0, 1)"),
            "margin": (0 <= self.margin < 1, "lie in [0, 1)"),
            "importance_cap": (cap is None or cap >= 1, "be at least 1, or null"),
        }
        for name, (valid, expectation) in checks.items():
            if not valid:
                raise ConfigurationError(f"`ListOPD.{name}` must {expectation}, got {getattr(self, name)}.")
