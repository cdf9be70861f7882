"""On-policy distillation over a few ids of each token."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.diagnostics import overlap
from veto_pl.functional.supports import top_k_ids
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import RolloutSource
from veto_pl.seams.tokens import TokenRows

__all__ = ["TopKOPD"]


@dataclass(frozen=True, kw_only=True)
class TopKOPD(TokenObjective):
    r"""Policy gradient on the log-ratio of a few ids instead of the sampled one.

    .. math:: -\sum_{v \in \mathcal{S}} \mathrm{sg}(A_v) \log p_S(v), \qquad
        A_v = -w_v \left( \log p_S(v) - \log p_T(v) \right)

    The probabilities in A are those over the whole vocabulary. The reported loss is :math:`-\sum_v A_v`. With every id
    and the student's weights it is the reverse KL, in value and gradient; ids without probability count nothing.

    Departures: one update is made per rollout, so the clipping of the probability ratio never binds and is left out.

    Args:
        k: likeliest ids of each model; a number from the vocabulary's size on takes all.
        support: whose likeliest ids count, or which set of both; `sampled` takes the sampled token alone.
        weights: w, the probability under `student` or `teacher`, renormalised over the support unless that is the
            symmetric difference, as in the published code; or `none` for 1.

    References:
        arXiv 2604.13016
    """

    k: Count = 16
    support: Literal["student", "teacher", "overlap", "union", "symmetric_difference", "sampled"] = "student"
    weights: Literal["student", "teacher", "none"] = "student"
    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0))

    @classmethod
    def examples(cls) -> tuple["TopKOPD", ...]:
        return (
            *(cls(k=4, support=support) for support in ("union", "student", "teacher", "overlap", "sampled")),
            cls(k=4, support="symmetric_difference", weights="teacher", temperature=2.0),
            cls(k=99, weights="none", aggregation="sequence"),
        )

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Refuse every stored or served teacher."""
        raise ConfigurationError(f"`TopKOPD` needs a live teacher: {teacher} does not know every id.")

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the sum over the support, with the gradient of the log-probabilities alone, [n]."""
        ids, cost = self._costs(rows)
        logp = rows.student_logp.gather(1, ids).masked_fill(cost == 0, 0.0)
        return cost.sum(-1) + (cost * (logp - logp.detach())).sum(-1)

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        r"""Compute the losses and the gradient :math:`\sum_v c_v (e_v - p)` with the costs :math:`c = -A`."""
        ids, cost = self._costs(rows)
        losses = cost.sum(-1)
        return losses, rows.student_logp.exp().mul_(-losses[:, None]).scatter_add_(1, ids, cost)

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """Add what the likeliest ids of both have in common."""
        return {**super().token_metrics(rows), **overlap(rows.student_logp, rows.required_teacher_logp(), self.k)}

    def _costs(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Return ids, [n, J], and -A of each, [n, J]; 0 for those that do not count."""
        student_logp, teacher_logp = rows.student_logp.detach(), rows.required_teacher_logp()
        if self.support == "sampled":
            ids = rows.token_ids[:, None]
            chosen = torch.ones_like(ids, dtype=torch.bool)
        else:
            ids, chosen = top_k_ids(student_logp, teacher_logp, self.k, self.support)
        student, teacher = student_logp.gather(1, ids), teacher_logp.gather(1, ids)
        weight = self._weights(student, teacher, chosen & (student > -torch.inf))
        return ids, weight * torch.where(weight > 0, student - teacher, 0.0)

    def _weights(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """Return the weight of each id, [n, J]; 0 where an id is not chosen."""
        if self.weights == "none":
            return chosen.to(student.dtype)
        logp = (student if self.weights == "student" else teacher).masked_fill(~chosen, -torch.inf)
        possible = chosen & (logp > -torch.inf)
        if self.support != "symmetric_difference":
            logp = logp - logp.logsumexp(-1, keepdim=True)
        return logp.exp().masked_fill(~possible, 0.0)
