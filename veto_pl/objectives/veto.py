"""Veto: on-policy distillation to a target that the student can follow."""

from dataclasses import dataclass, field

from veto_pl.objectives.distill import Distill
from veto_pl.parts.schedules import Linear
from veto_pl.parts.targets import BridgeWeight, GeometricBridge
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import RolloutSource, Schedule, Target

__all__ = ["Veto"]


@dataclass(frozen=True, kw_only=True)
class Veto(Distill):
    r"""The student is drawn to a geometric bridge between the teacher and itself, on its own completions.

    .. math:: Q \propto P_T\, \mathrm{sg}(P_S)^{\beta}, \qquad L = \mathrm{KL}(Q \Vert P_S)

    With the forward KL, beta vetoes the pull towards tokens that the student does not know; the gradient with respect
    to the logits is :math:`P_S - Q`. With `divergence: ReverseKL`, beta is a knob between decisiveness and diversity.
    `beta: 0` is plain on-policy distillation, to the bit.

    Departures from the published code, which are its defects: the first completion token counts, the schedule counts
    optimizer steps whatever the number of ranks, and batches are not cut into single rows.

    Args:
        beta: strength of the veto, a number or a schedule. The paper decays it linearly to 0, from 0.8 (GSM8K),
            1.0 (code) or 0.3 (summarisation).

    References:
        arXiv 2601.07155
    """

    beta: BridgeWeight | Schedule = Linear(0.8, 0.0)
    rollout: RolloutSource = FromStudent(Sampling(temperature=0.5, top_p=0.5))
    target: Target = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        object.__setattr__(self, "target", GeometricBridge(self.beta))
        super().__post_init__()
