"""Entropy-aware on-policy distillation."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from veto_pl.core.bounds import Count, FromZero, NonNegative
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.divergences import forward_kl
from veto_pl.objectives.distill import Distill
from veto_pl.parts.advantages import LogRatio
from veto_pl.parts.supports import FullVocabulary
from veto_pl.parts.targets import Teacher
from veto_pl.parts.weightings import Uniform
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Advantage, Divergence, RolloutSource, Support, Target, TokenWeighting
from veto_pl.seams.tokens import TokenRows

__all__ = ["EOPD"]


@dataclass(frozen=True, kw_only=True)
class EOPD(Distill):
    r"""Policy gradient on the log-ratio, and a forward KL over a few ids where the teacher is undecided.

    .. math:: -A_t \log p_S(y_t) + \alpha\, 1[H(p_T) > \tau] \sum_{v \in T_k} \tilde p_T(v) \log
        \frac{\tilde p_T(v)}{p_S(v)}

    :math:`\tilde p_T` is the teacher renormalised over its k likeliest ids; the student is not renormalised.

    Departures: no official code was found. The entropy is that of the whole vocabulary, in nats, and with one update
    per rollout the clipping of PPO never binds.

    Args:
        alpha: weight of the forward KL.
        tau: entropy of the teacher, in nats, above which the forward KL counts; infinity leaves the policy gradient
            alone.
        k: the teacher's likeliest ids; a number from the vocabulary's size on takes all.
        advantage: the log-ratio of the sampled token.

    References:
        arXiv 2603.07079
    """

    alpha: NonNegative = 1.0
    tau: FromZero = 0.8
    k: Count = 16
    advantage: Advantage | None = LogRatio()
    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0))
    divergence: Divergence | None = field(init=False, default=None)
    support: Support = field(init=False, default=FullVocabulary())
    target: Target = field(init=False, default=Teacher())
    weighting: TokenWeighting = field(init=False, default=Uniform())

    @classmethod
    def examples(cls) -> tuple["EOPD", ...]:
        return cls(k=8), cls(tau=0.0, k=4, importance_cap=2.0)

    @property
    def sampled_tokens_only(self) -> bool:
        """Whether the forward KL can count nowhere."""
        return self.alpha == 0 or self.tau == math.inf

    def per_token(self, rows: TokenRows) -> Tensor:
        """The forward KL where it counts."""
        ids, teacher = self._likeliest(rows)
        return self._coefficient(rows) * forward_kl(rows.student_logp.gather(1, ids), teacher)

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """The forward KL, and the student minus the renormalised teacher."""
        ids, teacher = self._likeliest(rows)
        weight = self._coefficient(rows)
        gradient = rows.student_logp.exp().scatter_add_(1, ids, -teacher.exp())
        return weight * forward_kl(rows.student_logp.gather(1, ids), teacher), gradient.mul_(weight[:, None])

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """Adds the share of tokens where the teacher is undecided."""
        return {**super().token_metrics(rows), "undecided": self._undecided(rows)}

    def _likeliest(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """[n, K] ids and renormalised log-probabilities of the teacher."""
        teacher = rows.required_teacher_logp()
        logp, ids = teacher.topk(min(self.k, teacher.shape[-1]), -1)
        return ids, torch.log_softmax(logp, -1)

    def _coefficient(self, rows: TokenRows) -> Tensor:
        return self.alpha * self._undecided(rows)

    def _undecided(self, rows: TokenRows) -> Tensor:
        """[n] 1 or 0."""
        return (entropy(rows.required_teacher_logp()) > self.tau).to(rows.student_logp.dtype)
