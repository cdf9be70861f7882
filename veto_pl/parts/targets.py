"""What the student is drawn to; `veto_pl.functional.targets` has the mathematics."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from veto_pl.core.bounds import NonNegative, UnitInterval
from veto_pl.functional.differentiation import belongs
from veto_pl.functional.divergences import generalized_jsd
from veto_pl.functional.targets import geometric_bridge, geometric_mean
from veto_pl.parts.schedules import Linear, value_at
from veto_pl.seams import Schedule, Step, Target

LARGEST_BETA = 1e6
"""Beyond it the powers of unlikely ids leave the range of float32, and the target is NaN."""
BridgeWeight = Annotated[float, Interval(ge=0, le=LARGEST_BETA)]


@dataclass(frozen=True)
class Teacher(Target):
    """The teacher as it is.

    References:
        arXiv 1503.02531
    """

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        return teacher_logp

    @property
    def is_neutral(self) -> bool:
        """Return whether the call is still that of this class, which changes nothing."""
        return belongs(self, "is_neutral", "__call__")


@dataclass(frozen=True)
class GeometricBridge(Target):
    r"""Veto's target, proportional to teacher x student^beta.

    Args:
        beta: strength of the veto, a number >= 0 or a schedule.

    References:
        arXiv 2601.07155
    """

    beta: BridgeWeight | Schedule = 0.8
    tensor_numbers = ("beta",)

    @classmethod
    def examples(cls) -> tuple["GeometricBridge", ...]:
        return cls(), cls(0.0), cls(Linear(2.0, 0.5))

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        return geometric_bridge(teacher_logp, student_logp, value_at(self.beta, step.index, step.total))


@dataclass(frozen=True)
class DisagreementBridge(Target):
    r"""A geometric mean of teacher and student that keeps to the student where the two disagree.

    .. math:: Q \propto P_T^{1 - \alpha} P_S^{\alpha}, \qquad
        \alpha = 2 \alpha_{max} \left( \sigma(\beta\, \mathrm{JSD}(P_S, P_T)) - \tfrac12 \right)

    Args:
        beta: how soon disagreement counts, at least 0; 0 is the teacher.
        alpha_max: the student's largest share, in [0, 1].

    References:
        arXiv 2607.02502, equations 8 and 9
    """

    beta: NonNegative = 50.0
    alpha_max: UnitInterval = 0.15

    @classmethod
    def examples(cls) -> tuple["DisagreementBridge", ...]:
        return cls(), cls(beta=0.0), cls(alpha_max=0.9, beta=2.0)

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        if not self.beta * self.alpha_max:
            return teacher_logp
        disagreement = generalized_jsd(student_logp, teacher_logp, 0.5)
        return geometric_mean(teacher_logp, student_logp, self.share(disagreement))

    def share(self, disagreement: Tensor) -> Tensor:
        """Compute alpha [...], of the disagreement [...] in nats: 0 where there is none, never above `alpha_max`."""
        return self.alpha_max * (self.beta * disagreement / 2).tanh()  # 2 sigmoid(x) - 1 = tanh(x / 2)
