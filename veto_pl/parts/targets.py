"""What the student is drawn to; `veto_pl.functional.targets` has the mathematics."""

import math
from dataclasses import dataclass

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.differentiation import belongs
from veto_pl.functional.targets import geometric_bridge
from veto_pl.parts.schedules import value_at
from veto_pl.seams import Schedule, Step, Target

LARGEST_BETA = 1e6
"""Beyond it the powers of unlikely ids leave the range of float32, and the target is NaN."""


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
        """Whether the call is still that of this class."""
        return belongs(self, "is_neutral", "__call__")


@dataclass(frozen=True)
class GeometricBridge(Target):
    r"""Veto's target, proportional to teacher x student^beta.

    Args:
        beta: strength of the veto, a number >= 0 or a schedule.

    References:
        arXiv 2601.07155
    """

    beta: float | Schedule = 0.8

    def __post_init__(self) -> None:
        if not isinstance(self.beta, Schedule) and not (self.beta >= 0 and math.isfinite(self.beta)):
            raise ConfigurationError(f"`beta` must be at least 0 and finite, got {self.beta}.")
        if not isinstance(self.beta, Schedule) and self.beta > LARGEST_BETA:
            raise ConfigurationError(f"`beta` must be at most {LARGEST_BETA:g}, got {self.beta}.")

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        return geometric_bridge(teacher_logp, student_logp, value_at(self.beta, step.index, step.total))
