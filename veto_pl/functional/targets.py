"""Target distributions built from a teacher and a student, token by token; [..., V] to [..., V]."""

import math

import torch
from torch import Tensor

from veto_pl.functional.scalars import Scalar


def geometric_bridge(teacher_logp: Tensor, student_logp: Tensor, beta: Scalar) -> Tensor:
    r"""Compute Veto's target, a geometric bridge between teacher and student.

    .. math:: Q_\beta = \frac{P_T\, P_S^{\beta}}{\sum_v P_T(v)\, P_S(v)^{\beta}}

    With the student held fixed, :math:`\mathrm{KL}(Q \Vert P_S)` has the gradient :math:`P_S - Q` with respect to the
    student's logits: on ids that the student does not know, :math:`P_S^\beta` is small and vetoes the teacher's pull.
    Its fixed point :math:`P_S = Q` is the sharpened teacher :math:`P_T^{1/(1-\beta)}` (normalised), for beta < 1.

    Args:
        teacher_logp: [..., V] log-probabilities of the teacher.
        student_logp: [..., V] log-probabilities of the student. Detach it for Veto; this function does not.
        beta: strength of the veto, at least 0; 0 gives the teacher, bit by bit. A 0-dim
            tensor is not checked.

    Returns:
        [..., V] normalised log-probabilities.

    Raises:
        ValueError: `beta` is negative or not finite.

    Numerics: log-space; an id that either model excludes stays excluded for beta > 0.

    Example:
        >>> teacher = torch.tensor([0.5, 0.5]).log()
        >>> student = torch.tensor([0.2, 0.8]).log()
        >>> geometric_bridge(teacher, student, 1.0).exp()
        tensor([0.2000, 0.8000])

    References:
        "Stable On-Policy Distillation through Adaptive Target Reformulation", arXiv 2601.07155;
        the authors' code is jjun-0824/Veto at 0ff04a0 (`blend_teacher_logps`).
    """
    if isinstance(beta, Tensor):
        return torch.log_softmax(teacher_logp + torch.where(beta == 0, 0.0, beta * student_logp), -1)
    if not (0 <= beta < math.inf):
        raise ValueError(f"`beta` of the geometric bridge must be a finite number >= 0, got {beta}.")
    if beta == 0:
        return teacher_logp
    return torch.log_softmax(teacher_logp + beta * student_logp, -1)


def geometric_mean(teacher_logp: Tensor, student_logp: Tensor, share: Tensor) -> Tensor:
    r"""Compute the weighted geometric mean of teacher and student, each token with a weight of its own.

    .. math:: Q \propto P_T^{1 - \alpha}\, P_S^{\alpha}

    It is the distribution that minimises :math:`(1 - \alpha)\,\mathrm{KL}(Q \Vert P_T) + \alpha\,\mathrm{KL}(Q \Vert
    P_S)`. With the student inside of Q and the weight held fixed, :math:`\mathrm{KL}(P_S \Vert Q)` has
    :math:`1 - \alpha` times the gradient of :math:`\mathrm{KL}(P_S \Vert P_T)`.

    Args:
        teacher_logp: [..., V] log-probabilities of the teacher.
        student_logp: [..., V] log-probabilities of the student.
        share: [...] alpha, the student's weight, in [0, 1].

    Returns:
        [..., V] normalised log-probabilities.

    Numerics: log-space; an id that a model with a positive weight excludes stays excluded.

    Example:
        >>> teacher, student = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.2, 0.8]).log()
        >>> geometric_mean(teacher, student, torch.tensor(0.5)).exp()
        tensor([0.3333, 0.6667])

    References:
        arXiv 2607.02502, equations 9 and 10
    """
    share = share[..., None]
    gone_teacher, gone_student = teacher_logp.isneginf(), student_logp.isneginf()
    excluded = gone_teacher & (share < 1) | gone_student & (share > 0)
    teacher, student = teacher_logp.masked_fill(gone_teacher, 0.0), student_logp.masked_fill(gone_student, 0.0)
    return torch.log_softmax(((1 - share) * teacher + share * student).masked_fill(excluded, -math.inf), -1)
