"""On-policy distillation from a few of a teacher's ids and the sampled one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.functional.supports import members
from veto_pl.objectives.distill import Distill
from veto_pl.parts.divergences import ReverseKL
from veto_pl.parts.supports import FullVocabulary, TopK
from veto_pl.parts.targets import Teacher
from veto_pl.parts.weightings import Uniform
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import (
    Advantage,
    Divergence,
    Mistake,
    RolloutSource,
    Setup,
    Support,
    Target,
    TokenWeighting,
    Writing,
)
from veto_pl.seams.tokens import TokenRows

__all__ = ["ResOPD"]


@dataclass(frozen=True, kw_only=True)
class ResOPD(Distill):
    r"""The reverse KL over every id, unbiased, from the teacher's k likeliest ids and the sampled one.

    .. math:: \hat g = \nabla \mathrm{KL}(\bar p_S \Vert \bar p_T) + 1[y \notin \mathcal{S}] \left(
        \log \frac{p_S(y)}{p_T(y)} \nabla \log p_S(y) - \log \frac{\tau_S}{\tau_T} \nabla \log \tau_S \right)

    with the distributions :math:`\bar p` over the teacher's likeliest ids :math:`\mathcal{S}` and one outcome of mass
    :math:`\tau` for all others, and the logarithms in front of the gradients held fixed. What is known of the
    teacher is integrated exactly, and only what lies within the tail is sampled. The mean over the sampled id is the
    gradient of :math:`\mathrm{KL}(p_S \Vert p_T)`, and the mean of the reported value is that divergence, where the
    student samples from the distribution of the loss: at its temperature, untruncated, and just before the update.

    It suits a teacher behind a server (`ServedTeacher`), which tells no more than that.

    Args:
        rollout: who writes the completions.
        k: likeliest ids of a live teacher; a stored or served one has as many as it tells.

    References:
        arXiv 2610.04882
    """

    k: Count = 4
    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0))
    support: Support = field(init=False)
    target: Target = field(init=False, default=Teacher())
    divergence: Divergence | None = field(init=False, default=ReverseKL())
    weighting: TokenWeighting = field(init=False, default=Uniform())
    advantage: Advantage | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.check_bounds()
        object.__setattr__(self, "support", FullVocabulary() if self.rollout.stored_teacher else TopK(self.k))
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["ResOPD", ...]:
        return cls(), cls(k=1, temperature=2.0, aggregation="sequence")

    @property
    def fixed_support(self) -> Support:
        """Return every id: a teacher that tells fewer says how many."""
        return FullVocabulary()

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield a rollout that does not draw from the distribution of the loss."""
        if biased := next((one for one in self.rollout.writings() if not self._is_unbiased(one)), None):
            yield Mistake(f"{path}.init_args.rollout", f"a rollout with {biased.sampling}",
                          f"samples of the student at temperature {self.temperature:g}, untruncated",
                          "With others the gradient is not that of the reverse KL.", fatal=False)  # fmt: skip

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the reverse KL over k + 1 outcomes, plus what a sampled id of the tail adds, [n]."""
        student, teacher = rows.outcomes(self.support)
        kept = student.shape[-1] - 1
        ids = rows.required_teacher_logp().topk(kept, -1).indices if rows.stored is None else rows.stored.ids
        in_tail = ~members(rows.token_ids[:, None], ids)[:, 0]
        fine = _fixed_ratio(rows.token_logp(), rows.teacher_token_logp(), in_tail)
        return super().per_token(rows) + fine - _fixed_ratio(student[:, -1], teacher[:, -1], in_tail)

    def _is_unbiased(self, writing: Writing) -> bool:
        how = writing.sampling
        plain = how is not None and (how.temperature, how.top_p, how.top_k) == (self.temperature, 1.0, 0)
        return plain and writing.writers == ("student",)


def _fixed_ratio(student_logp: Tensor, teacher_logp: Tensor, where: Tensor) -> Tensor:
    """Return log(student / teacher), [n], with its size times the gradient of `student_logp`; 0 off `where`."""
    logp, other = (torch.where(where, values, 0.0) for values in (student_logp, teacher_logp))
    return (logp.detach() - other) * (1 + logp - logp.detach())
