"""Relaxed on-policy distillation."""

from dataclasses import dataclass

from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import RelaxedLogRatio
from veto_pl.seams import Advantage

__all__ = ["REOPOLD"]


@dataclass(frozen=True, kw_only=True)
class REOPOLD(PolicyGradient):
    r"""Relaxed on-policy distillation: no strong punishment, and later only tokens that the student is unsure of.

    .. math:: L_t = -\rho_t M_t \hat R_t \log p_S(y_t), \qquad \hat R_t = \max\left( \log p_T(y_t) - \log p_S(y_t),\
        \log \tfrac{\lambda}{1 - \lambda} \right)

    with :math:`M_t = 0` for tokens below the floor before the switch, and for all but the tokens with the highest
    entropy after it. The denominator stays the number of all tokens. Where neither binds, the gradient is that of
    `OPD`. Importance weights are truncated at 5 unless `importance_cap` says otherwise.

    Departures: the paper's values of `mixture`, `keep` and `switch` were not found, nor was code by its authors; the
    defaults are choices of this package. So is the reading of "strong negatives" as tokens below the floor. The entropy
    is ranked within each completion, so that the same tokens count however a batch is split.

    Args:
        mixture: lambda in (0, 1), which sets the floor.
        keep: the share of the tokens of a completion that counts after the switch, in (0, 1].
        switch: the fraction of the run after which refinement begins, in [0, 1].

    References:
        arXiv 2603.11137
    """

    mixture: float = 0.2
    keep: float = 0.5
    switch: float = 0.5

    @classmethod
    def examples(cls) -> tuple["REOPOLD", ...]:
        return cls(), cls(switch=0.0, keep=0.4)

    def credit(self) -> Advantage:
        """The relaxed log-ratio."""
        return RelaxedLogRatio(self.mixture, self.keep, self.switch)
