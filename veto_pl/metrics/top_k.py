"""Metrics of the likeliest ids of student and teacher: what they share, and what lies outside of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional import diagnostics
from veto_pl.metrics.metric_bases import CompletionMetric, MetricFamily, TokenMetric, require_teacher

Quantity = Literal[
    "overlap_ratio",
    "overlap_mass",
    "overlap_advantage",
    "entropy_gap",
    "student_mass",
    "teacher_mass",
    "hidden_kl",
]


def _hidden_kl(student_logp: Tensor, teacher_logp: Tensor, k: int) -> Tensor:
    ids = student_logp.topk(min(k, student_logp.shape[-1]), -1).indices
    return diagnostics.hidden_kl(student_logp, teacher_logp, ids)


def _overlap(name: str, student_logp: Tensor, teacher_logp: Tensor, k: int) -> Tensor:
    return diagnostics.overlap(student_logp, teacher_logp, k)[name]


_VALUES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    **{name: partial(_overlap, name) for name in ("overlap_ratio", "overlap_mass", "overlap_advantage")},
    "entropy_gap": lambda student, teacher, k: diagnostics.entropy_gap(student, teacher),
    "student_mass": lambda student, teacher, k: diagnostics.top_k_mass(student, k),
    "teacher_mass": lambda student, teacher, k: diagnostics.top_k_mass(teacher, k),
    "hidden_kl": _hidden_kl,
}


class TopKDiagnostic(TokenMetric):
    r"""One number about the k likeliest ids of student and teacher; logged as `<of>_<k>`, the entropy gap without k.

    Args:
        of: `overlap_ratio`, the share of ids that both have; `overlap_mass`, the student's probability of those;
            `overlap_advantage`, what the teacher would have of those, in nats, 0 where both rank them alike;
            `entropy_gap`, how far the entropies are apart, in nats; `student_mass` and `teacher_mass`, a model's
            probability of its own k; `hidden_kl`, the part of KL(student || teacher) in nats that is lost where all ids
            but the student's k are pooled.
        k: ids of each model; all where there are fewer.

    Raises:
        ConfigurationError: k is below 1, or there is no such number.

    References:
        arXiv 2604.13016
    """

    def __init__(self, of: Quantity = "overlap_ratio", k: int = 16) -> None:
        super().__init__()
        if of not in _VALUES:
            raise ConfigurationError(f"`TopKDiagnostic.of` must be one of {', '.join(_VALUES)}, got {of}.")
        self.of, self.k = of, _checked(k, "TopKDiagnostic")
        self.name = of if of == "entropy_gap" else f"{of}_{k}"

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        return _VALUES[self.of](student_logp, require_teacher(teacher_logp), self.k)


class TopKDiagnostics(MetricFamily):
    """Every `TopKDiagnostic`: whether the likeliest ids agree, and what a truncation to them would leave out.

    Args:
        k: ids of each model; all where there are fewer.

    Raises:
        ConfigurationError: k is below 1.

    References:
        arXiv 2604.13016
    """

    def __init__(self, k: int = 16) -> None:
        self.k = _checked(k, "TopKDiagnostics")

    def members(self, num_completions: int) -> list[CompletionMetric | TokenMetric]:
        """Return one metric for each quantity."""
        return [TopKDiagnostic(of, self.k) for of in get_args(Quantity)]


def _checked(k: int, name: str) -> int:
    if k < 1:
        raise ConfigurationError(f"`{name}.k` must be at least 1, got {k}.")
    return k
