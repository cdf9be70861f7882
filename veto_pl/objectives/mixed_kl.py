"""Forward and reverse KL, mixed by what the two models say at a token: AKL and ToDi."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from veto_pl.core.bounds import UnitInterval
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional import closed_forms
from veto_pl.functional.mixing import head_share, mixed_kl, ratio_share
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.parts.supports import FullVocabulary
from veto_pl.seams.tokens import TokenRows

__all__ = ["AKL", "MixedKL", "ToDi"]


@dataclass(frozen=True, kw_only=True)
class MixedKL(TokenObjective):
    """Forward and reverse KL to the teacher; subclasses say in `share` how much of either, held fixed."""

    @abstractmethod
    def share(self, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        """Return the forward KL's share, in [0, 1], at the outcomes [n, K] of a few tokens, as [n, K] or [n, 1]."""

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the mixture of forward and reverse KL, [n]."""
        student, teacher = rows.outcomes(FullVocabulary())
        return mixed_kl(student, teacher, self.share(student.detach(), teacher).detach())

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Compute the mixture and its gradient, in closed form where the teacher is asked live."""
        if rows.stored is not None:
            return self.by_autograd(rows)
        teacher = rows.required_teacher_logp()
        return closed_forms.mixed_kl(rows.student_logp, teacher, self.share(rows.student_logp, teacher))


@dataclass(frozen=True, kw_only=True)
class AKL(MixedKL):
    r"""Adaptive KL: the forward KL counts as far as the gap between the models lies at the teacher's likely ids.

    .. math:: \frac{g_h}{g_h + g_t} \mathrm{KL}(p_T \Vert p_S) + \frac{g_t}{g_h + g_t} \mathrm{KL}(p_S \Vert p_T),
        \qquad g = \sum_v |p_T - p_S|

    with the sums over the head and the tail of the teacher's distribution, held fixed.

    Departures from the published code: each KL counts half where the gap is 0; the code divides 0 by 0.

    Args:
        head: mass of the head, in [0, 1]. The tail is the teacher's least likely ids, as many as stay below the rest.

    References:
        arXiv 2404.02657
    """

    head: UnitInterval = 0.5

    @classmethod
    def examples(cls) -> tuple["AKL", ...]:
        return cls(), cls(head=0.9)

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Refuse every stored or served teacher."""
        raise ConfigurationError(
            f"`AKL` tells likely ids from unlikely ones, but {teacher} knows the likely ones alone. Use a live "
            "teacher, or `ToDi`."
        )

    def share(self, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        """Return one share for all ids of a token, [n, 1]."""
        return head_share(student_logp, teacher_logp, self.head)


@dataclass(frozen=True, kw_only=True)
class ToDi(MixedKL):
    r"""Token-wise distillation: each id is pulled up by the forward KL or down by the reverse KL.

    .. math:: \sum_v \left[ a_v\, p_T \log \frac{p_T}{p_S} + (1 - a_v)\, p_S \log \frac{p_S}{p_T} \right], \qquad
        a_v = \mathrm{sg}\, \sigma\!\left( \log \frac{p_T(v)}{p_S(v)} \right)

    The loss of a token can be negative, and is 0 where the models agree.

    Departures: no official code was read; the sigmoid has no inner scale.

    References:
        arXiv 2505.16297
    """

    def share(self, student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        """Return a share for each id, [n, K]."""
        return ratio_share(student_logp, teacher_logp)
