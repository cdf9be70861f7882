"""Generalised knowledge distillation."""

from dataclasses import dataclass, field

from veto_pl.core.bounds import UnitInterval
from veto_pl.objectives.distill import Distill
from veto_pl.parts.divergences import ForwardKL, GeneralizedJSD, ReverseKL
from veto_pl.rollouts import FromDataset, FromStudent, Mixture, Sampling
from veto_pl.seams import Divergence, RolloutSource, Schedule

__all__ = ["GKD"]


@dataclass(frozen=True, kw_only=True)
class GKD(Distill):
    r"""On-policy with probability lmbda, else on the task's completions, under a generalised JSD.

    Args:
        lmbda: probability that the student writes the batch's completions, a number in [0, 1] or a schedule.
        beta: weight of the teacher in the JSD. At 0 the loss is the forward KL and at 1 the reverse KL, as in the
            paper: these are the limits of JSD / beta and JSD / (1 - beta), so the loss jumps at the end points.
        sampling: how the student samples.

    References:
        arXiv 2306.13649
    """

    lmbda: UnitInterval | Schedule = 0.5
    beta: UnitInterval = 0.5
    sampling: Sampling = Sampling(temperature=1.0)
    rollout: RolloutSource = field(init=False)
    divergence: Divergence | None = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        rollout = Mixture(FromStudent(self.sampling), FromDataset(), self.lmbda)
        object.__setattr__(self, "rollout", rollout)
        object.__setattr__(self, "divergence", jsd_or_its_limit(self.beta))
        super().__post_init__()


def jsd_or_its_limit(beta: float) -> Divergence:
    """Return the JSD with a weight of the teacher in [0, 1], or at the end points the limit of its quotient, a KL."""
    ends: dict[float, Divergence] = {0.0: ForwardKL(), 1.0: ReverseKL()}
    return ends[beta] if beta in ends else GeneralizedJSD(beta)
