"""How much each token counts."""

from dataclasses import dataclass

from torch import Tensor

from veto_pl.functional.diagnostics import entropy
from veto_pl.seams import TokenWeighting


@dataclass(frozen=True)
class Uniform(TokenWeighting):
    """Every token counts 1."""

    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        return student_logp.new_ones(student_logp.shape[:-1])


@dataclass(frozen=True)
class TeacherEntropyAbove(TokenWeighting):
    """Only tokens where the teacher is undecided count.

    Args:
        threshold: entropy of the teacher in nats.

    References:
        arXiv 2603.07079
    """

    threshold: float = 0.8

    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        return (entropy(teacher_logp) > self.threshold).to(student_logp.dtype)
