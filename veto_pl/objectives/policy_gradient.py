"""What policy-gradient objectives over sampled tokens share."""

from abc import abstractmethod
from dataclasses import dataclass, field

from veto_pl.objectives.distill import Distill
from veto_pl.parts.supports import FullVocabulary
from veto_pl.parts.targets import Teacher
from veto_pl.parts.weightings import Uniform
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Advantage, Divergence, RolloutSource, Support, Target, TokenWeighting

__all__ = ["PolicyGradient"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Distill):
    r"""A policy-gradient term and nothing else, on completions of the student; subclasses say what earns credit.

    .. math:: -\min\left(\frac{p_S(y_t)}{\mu(y_t)}, c\right) A_t \log p_S(y_t)

    :math:`\mu` is the distribution that sampled the token, and the weight and :math:`A` are held fixed. This is the
    gradient's form; the loss that is reported is the weight times :math:`-A`. There is one update per rollout, so the
    clipping of PPO never binds.

    Args:
        rollout: who writes the completions.
        importance_cap: c, the truncation of the importance weights; None switches them off, infinity leaves them whole.
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0))
    importance_cap: float | None = 5.0
    support: Support = field(init=False, default=FullVocabulary())
    target: Target = field(init=False, default=Teacher())
    divergence: Divergence | None = field(init=False, default=None)
    weighting: TokenWeighting = field(init=False, default=Uniform())
    advantage: Advantage | None = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        object.__setattr__(self, "advantage", self.credit())
        super().__post_init__()

    @abstractmethod
    def credit(self) -> Advantage:
        """The advantage that the settings describe."""
