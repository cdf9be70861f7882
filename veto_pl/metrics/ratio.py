"""Metrics of how far the target lies above the student, which is what pulls a forward KL."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.targets import geometric_bridge
from veto_pl.metrics.metric_bases import TokenMetric, require_teacher


class TargetRatio(TokenMetric):
    r"""The largest ratio of Veto's target to the student at a token, in powers of ten.

    .. math:: \log_{10} \max_v Q_\beta(v) / P_S(v)

    A forward KL weighs outcomes by this ratio: where the student does not know what the teacher wants, it explodes. It
    is never below 0, for the target cannot lie below the student everywhere.

    Args:
        beta: exponent of the student in the target, at least 0; at 0 the target is the teacher.
        over: `mean` or `largest` over the tokens.

    Raises:
        ConfigurationError: beta is negative or not finite.

    References:
        arXiv 2601.07155, section 3
    """

    unit = "powers of ten"
    higher_is_better = False
    peak: Tensor

    def __init__(self, beta: float = 0.0, over: Literal["mean", "largest"] = "mean") -> None:
        super().__init__()
        if not (beta >= 0 and math.isfinite(beta)):
            raise ConfigurationError(f"`TargetRatio.beta` must be a finite number >= 0, got {beta}.")
        self.beta = beta
        self.over = over
        self.name = f"{over}_ratio_{beta:g}".replace(".", "_")  # a module's name has no dot
        self.add_state("peak", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    @classmethod
    def examples(cls) -> tuple[TargetRatio, ...]:
        return cls(), cls(0.5, "largest")

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        target = geometric_bridge(require_teacher(teacher_logp), student_logp, self.beta)
        # An id that neither admits has no ratio; one that only the target admits has an infinite one.
        gap = torch.where(target == -torch.inf, -torch.inf, target - student_logp)
        return gap.amax(-1) / math.log(10)

    def compute(self) -> Tensor:
        """Return the mean or the largest over the tokens, in powers of ten; 0 where there are no tokens."""
        return super().compute() if self.over == "mean" else self.peak.float()

    def _add(self, values: Tensor, weights: Tensor | None = None) -> None:
        super()._add(values, weights)
        self.peak = torch.maximum(self.peak, values.double().amax()) if values.numel() else self.peak
