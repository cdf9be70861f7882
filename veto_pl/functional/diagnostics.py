"""Numbers to look at beside a loss, token by token; [..., V] to [...]."""

import torch
from torch import Tensor

from veto_pl.functional.expectation import expectation


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
    return -torch.linalg.vecdot(logp.exp(), logp.clamp_min(torch.finfo(logp.dtype).min))  # type: ignore[no-any-return]


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


def comparison(student_logp: Tensor, teacher_logp: Tensor) -> dict[str, Tensor]:
    r"""What is worth knowing about two distributions, with each probability formed once.

    Args:
        student_logp: [..., V] normalised log-probabilities, :math:`p`.
        teacher_logp: [..., V] of the teacher, :math:`q`.

    Returns:
        `entropy` of the student, `kl` = KL(p || q) and `forward_kl` = KL(q || p) in nats, and `agreement`, 1 where an
        id is the likeliest for both; each [...].

    Numerics: 0 log 0 = 0; a KL is :math:`+\infty` where the other distribution excludes an id that has mass.

    Example:
        >>> student, teacher = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.25, 0.75]).log()
        >>> {name: round(float(value), 4) for name, value in comparison(student, teacher).items()}
        {'entropy': 0.673, 'kl': 0.2738, 'forward_kl': 0.2526, 'agreement': 0.0}
    """
    student, teacher = student_logp.exp(), teacher_logp.exp()
    ratio = student_logp - teacher_logp
    return {
        "entropy": -expectation(student, student_logp)[0],
        "kl": expectation(student, ratio)[0],
        "forward_kl": -expectation(teacher, ratio)[0],
        "agreement": _agree(student_logp, teacher_logp),
    }


def _agree(first_logp: Tensor, second_logp: Tensor) -> Tensor:
    """1 where an id is likeliest for both. Distances to the maxima are far cheaper than the places of the maxima."""
    distances = (logp - logp.amax(-1, keepdim=True) for logp in (first_logp, second_logp))
    return (torch.minimum(*distances).amax(-1) == 0).to(first_logp.dtype)
