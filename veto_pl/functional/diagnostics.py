"""Numbers to look at beside a loss, token by token; [..., V] to [...]."""

import math

import torch
from torch import Tensor


def entropy(logp: Tensor) -> Tensor:
    r"""Shannon entropy, :math:`-\sum_v p_v \log p_v`.

    Args:
        logp: [..., V] normalised log-probabilities.

    Returns:
        [...] nats.

    Numerics: 0 log 0 = 0, with a finite gradient.

    Example:
        >>> round(float(entropy(torch.tensor([0.5, 0.5]).log())), 4)
        0.6931
    """
    return -(logp.exp() * torch.where(logp == -math.inf, 0.0, logp)).sum(-1)


def top_one_agreement(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """1 where both models prefer the same id, else 0.

    Args:
        student_logp: [..., V].
        teacher_logp: [..., V].

    Returns:
        [...] of the student's dtype.

    Example:
        >>> top_one_agreement(torch.tensor([[0.1, 0.9]]).log(), torch.tensor([[0.4, 0.6]]).log())
        tensor([1.])
    """
    return (student_logp.argmax(-1) == teacher_logp.argmax(-1)).to(student_logp.dtype)


def sharpness(target_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    r"""How much sharper a target is than the teacher, :math:`H(p_T) - H(Q)`.

    Args:
        target_logp: [..., V] normalised log-probabilities of the target.
        teacher_logp: [..., V] of the teacher.

    Returns:
        [...] nats; 0 for the teacher itself, positive for a sharper target.

    Example:
        >>> teacher = torch.tensor([0.5, 0.5]).log()
        >>> float(sharpness(teacher, teacher))
        0.0
    """
    return entropy(teacher_logp) - entropy(target_logp)
