"""Target distributions built from a teacher and a student, token by token; [..., V] to [..., V]."""

import math

import torch
from torch import Tensor


def geometric_bridge(teacher_logp: Tensor, student_logp: Tensor, beta: float) -> Tensor:
    r"""Compute Veto's target, a geometric bridge between teacher and student.

    .. math:: Q_\beta = \frac{P_T\, P_S^{\beta}}{\sum_v P_T(v)\, P_S(v)^{\beta}}

    With the student held fixed, :math:`\mathrm{KL}(Q \Vert P_S)` has the gradient :math:`P_S - Q` with respect to the
    student's logits: on ids that the student does not know, :math:`P_S^\beta` is small and vetoes the teacher's pull.
    Its fixed point :math:`P_S = Q` is the sharpened teacher :math:`P_T^{1/(1-\beta)}` (normalised), for beta < 1.

    Args:
        teacher_logp: [..., V] log-probabilities of the teacher.
        student_logp: [..., V] log-probabilities of the student. Detach it for Veto; this function does not.
        beta: strength of the veto, at least 0; 0 gives the teacher, bit by bit.

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
    if not (beta >= 0 and math.isfinite(beta)):
        raise ValueError(f"`beta` of the geometric bridge must be a finite number >= 0, got {beta}.")
    if beta == 0:
        return teacher_logp
    return torch.log_softmax(teacher_logp + beta * student_logp, -1)
