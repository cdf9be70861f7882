"""Veto's target compared with the teacher, token by token, on what the student wrote."""

from __future__ import annotations

import math

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.diagnostics import sharpness
from veto_pl.functional.targets import geometric_bridge
from veto_pl.metrics.metric_bases import TokenMetric, require_teacher


class TargetSharpness(TokenMetric):
    r"""How many nats of entropy Veto's target has less than the teacher, :math:`H(P_T) - H(Q_\beta)`.

    Args:
        beta: exponent of the student in the target, at least 0; at 0 the target is the teacher and the value 0.

    Raises:
        ConfigurationError: beta is negative or not finite.

    References:
        arXiv 2601.07155
    """

    name = "target_sharpness"
    unit = "nats"

    def __init__(self, beta: float = 0.8) -> None:
        super().__init__()
        if not (beta >= 0 and math.isfinite(beta)):
            raise ConfigurationError(f"`TargetSharpness.beta` must be a finite number >= 0, got {beta}.")
        self.beta = beta

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        teacher = require_teacher(teacher_logp)
        return sharpness(geometric_bridge(teacher, student_logp, self.beta), teacher)
