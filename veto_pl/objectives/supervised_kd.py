"""Distillation on the task's completions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.core.bounds import UnitInterval
from veto_pl.functional.closed_forms import negative_log_likelihood
from veto_pl.objectives.distill import Distill
from veto_pl.seams.tokens import TokenRows

__all__ = ["SupervisedKD"]


@dataclass(frozen=True, kw_only=True)
class SupervisedKD(Distill):
    r"""Word-level distillation on reference completions, with an optional share of their likelihood.

    .. math:: (1 - g)\, D(p_S, Q)_t - g \log p_S(y_t)

    Args:
        gold_weight: g, in [0, 1].

    References:
        arXiv 1503.02531
    """

    gold_weight: UnitInterval = 0.0

    @classmethod
    def examples(cls) -> tuple["SupervisedKD", ...]:
        return cls(), cls(gold_weight=0.5)

    def per_token(self, rows: TokenRows) -> Tensor:
        """The two parts of each token's loss."""
        if not self.gold_weight:
            return super().per_token(rows)
        return (1 - self.gold_weight) * super().per_token(rows) - self.gold_weight * rows.token_logp()

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """The two parts, each in its own closed form."""
        if not self.gold_weight:
            return super().with_gradient(rows)
        if self.divergence is None or not self.on_every_id(rows):
            return self.by_autograd(rows)
        losses, gradient = super().with_gradient(rows)
        gold, pull = negative_log_likelihood(rows.student_logp, rows.token_ids)
        return torch.lerp(losses, gold, self.gold_weight), gradient.lerp_(pull, self.gold_weight)
