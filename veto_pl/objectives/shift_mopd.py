"""On-policy distillation of what several experts have learned, put on top of the student's start."""

from dataclasses import dataclass

from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import LogRatio
from veto_pl.parts.credit import Centred
from veto_pl.parts.panels import Shifted
from veto_pl.seams import Advantage, Panel

__all__ = ["ShiftMOPD"]


@dataclass(frozen=True, kw_only=True)
class ShiftMOPD(PolicyGradient):
    r"""On-policy distillation from several experts by their shifts: what each has learned beyond its own base.

    .. math:: A_t = r_t - \bar r, \qquad r_t = \log q(y_t) - \log p_S(y_t), \qquad
        q = \mathrm{softmax}\Big( z_A + \sum_i (z_{T_i} - z_{B_i}) \Big)

    with the logits z of the anchor A, the student's start, of the experts :math:`T_i` and of their bases :math:`B_i`.
    `panel` names them among `model.teachers`. Without experts the student is drawn to its start.

    Departures: the mean of r is that of the micro-batch on all ranks, where the paper takes the optimizer's batch;
    either is a baseline. Importance weights are truncated at 5.

    Args:
        aggregation: `sequence` weighs every completion alike, as in the paper.
        panel: the anchor, the experts and their bases.

    References:
        arXiv 2610.10460
    """

    aggregation: Aggregation = "sequence"
    panel: Panel = Shifted()

    @classmethod
    def examples(cls) -> tuple["ShiftMOPD", ...]:
        return cls(), cls(panel=Shifted({"teacher": "teacher"}))

    def credit(self) -> Advantage:
        """Return the centred log-ratio."""
        return Centred(LogRatio())
