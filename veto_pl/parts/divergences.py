"""The divergences that an objective can be composed with; `veto_pl.functional.divergences` has the mathematics."""

from dataclasses import dataclass

from torch import Tensor

from veto_pl.core.bounds import BelowOne, PositiveShare, UnitInterval
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional import alpha as families
from veto_pl.functional import closed_forms
from veto_pl.functional import divergences as functional
from veto_pl.seams import Divergence


@dataclass(frozen=True)
class ForwardKL(Divergence):
    r"""KL(target || student): covers the target's mass.

    References:
        arXiv 1503.02531
    """

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return functional.forward_kl(student_logp, target_logp)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.forward_kl(student_logp, target_logp)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    r"""KL(student || target): stays within the target's modes.

    References:
        arXiv 2306.08543
    """

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return functional.reverse_kl(student_logp, target_logp)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.reverse_kl(student_logp, target_logp)


@dataclass(frozen=True)
class GeneralizedJSD(Divergence):
    r"""Jensen-Shannon divergence with a mixture of `beta` target and `1 - beta` student.

    Args:
        beta: weight of the target, strictly between 0 and 1 (at the end points the divergence is constantly 0).

    References:
        arXiv 2306.13649
    """

    beta: float = 0.5
    tensor_numbers = ("beta",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise ConfigurationError(
                f"`GeneralizedJSD.beta` must lie strictly between 0 and 1, got {self.beta}: at the end points the "
                "divergence vanishes. Use `ForwardKL` for the limit at 0 and `ReverseKL` for the limit at 1."
            )

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return functional.generalized_jsd(student_logp, target_logp, self.beta)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.generalized_jsd(student_logp, target_logp, self.beta)


@dataclass(frozen=True)
class SkewKL(Divergence):
    r"""KL(target || alpha target + (1 - alpha) student): a forward KL that stays finite.

    Args:
        alpha: weight of the target in the mixture, in [0, 1).

    References:
        arXiv 2402.03898
    """

    alpha: BelowOne = 0.1
    tensor_numbers = ("alpha",)

    @classmethod
    def examples(cls) -> tuple["SkewKL", ...]:
        return cls(), cls(0.0)

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return functional.skew_kl(student_logp, target_logp, self.alpha)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.skew_kl(student_logp, target_logp, self.alpha)


@dataclass(frozen=True)
class SkewReverseKL(Divergence):
    r"""KL(student || (1 - alpha) target + alpha student): a reverse KL that stays finite.

    Args:
        alpha: weight of the student in the mixture, in [0, 1).

    References:
        arXiv 2402.03898
    """

    alpha: BelowOne = 0.1
    tensor_numbers = ("alpha",)

    @classmethod
    def examples(cls) -> tuple["SkewReverseKL", ...]:
        return cls(), cls(0.0)

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return functional.skew_reverse_kl(student_logp, target_logp, self.alpha)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.skew_reverse_kl(student_logp, target_logp, self.alpha)


@dataclass(frozen=True)
class TotalVariation(Divergence):
    r"""Half the absolute difference of the probabilities; bounded by 1.

    References:
        arXiv 2307.15190
    """

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return functional.total_variation(student_logp, target_logp)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.total_variation(student_logp, target_logp)


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    r"""Amari's alpha divergence: a path from the reverse KL to the forward KL.

    Args:
        alpha: place on the path, in [0, 1]: 0 is the reverse KL, 1 the forward KL, 1/2 four times
            the squared Hellinger distance.

    References:
        Cichocki and Amari 2010, doi:10.3390/e12061532
    """

    alpha: UnitInterval = 0.5
    tensor_numbers = ("alpha",)

    @classmethod
    def examples(cls) -> tuple["AlphaDivergence", ...]:
        return cls(), cls(0.0), cls(0.9), cls(1.0)

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return families.alpha_divergence(student_logp, target_logp, self.alpha)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.alpha_divergence(student_logp, target_logp, self.alpha)


@dataclass(frozen=True)
class Renyi(Divergence):
    r"""Renyi divergence of the target from the student: a forward KL that forgives the more, the lower its order.

    Args:
        alpha: the order, in (0, 1]; 1 is the forward KL.

    References:
        arXiv 1206.2459
    """

    alpha: PositiveShare = 0.5
    tensor_numbers = ("alpha",)

    @classmethod
    def examples(cls) -> tuple["Renyi", ...]:
        return cls(), cls(0.1), cls(1.0)

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return families.renyi(student_logp, target_logp, self.alpha)

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        return closed_forms.renyi(student_logp, target_logp, self.alpha)
