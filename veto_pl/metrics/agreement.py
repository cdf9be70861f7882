"""Student against teacher, token by token, on what the student wrote."""

from __future__ import annotations

from torch import Tensor

from veto_pl.functional.diagnostics import entropy, top_one_agreement
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.metrics.metric_bases import TokenMetric, require_teacher


class StudentEntropy(TokenMetric):
    """Entropy of the student in nats."""

    name = "student_entropy"
    unit = "nats"
    needs_teacher = False

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        return entropy(student_logp)


class ForwardKL(TokenMetric):
    """KL(teacher || student) in nats."""

    name = "forward_kl"
    title = "forward KL"
    unit = "nats/token"
    higher_is_better = False

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        return forward_kl(student_logp, require_teacher(teacher_logp))


class ReverseKL(TokenMetric):
    """KL(student || teacher) in nats."""

    name = "reverse_kl"
    title = "reverse KL"
    unit = "nats/token"
    higher_is_better = False

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        return reverse_kl(student_logp, require_teacher(teacher_logp))


class TopOneAgreement(TokenMetric):
    """The fraction of tokens where both prefer the same id."""

    name = "top_one_agreement"
    title = "top-1 agreement"
    unit = "%"
    higher_is_better = True

    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        return top_one_agreement(student_logp, require_teacher(teacher_logp))
