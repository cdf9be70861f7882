"""The two KLs added with weights of their own at each token or id; [..., V] and [..., V] to [...]."""

import math

import torch
from torch import Tensor

from veto_pl.functional.cumulative import cumulative_sum


def mixed_kl(student_logp: Tensor, target_logp: Tensor, share: Tensor) -> Tensor:
    r"""Add forward and reverse KL, mixed id by id.

    .. math:: \sum_v \left[ a_v\, q_v \log \frac{q_v}{p_v} + (1 - a_v)\, p_v \log \frac{p_v}{q_v} \right]

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.
        share: [..., V] or [..., 1], :math:`a`, in [0, 1]. Detach it to hold it fixed; this function does not.

    Returns:
        [...] nats; it can be negative where the shares differ between ids.

    Numerics: 0 log 0 = 0.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> round(float(mixed_kl(student, target, torch.tensor([1.0]))), 4)
        0.1308
    """
    student, target = student_logp.exp(), target_logp.exp()
    forward = target * torch.where(target > 0, target_logp - student_logp, 0.0)
    reverse = student * torch.where(student > 0, student_logp - target_logp, 0.0)
    return (share * forward + (1 - share) * reverse).sum(-1)


def head_share(student_logp: Tensor, target_logp: Tensor, head: float = 0.5) -> Tensor:
    r"""Compute AKL's weight of the forward KL: how much of the gap lies at the target's likely ids.

    .. math:: \frac{g_h}{g_h + g_t}, \qquad g = \sum_v |q_v - p_v| \text{ over the head, over the tail}

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.
        head: mass of the head, in [0, 1]. The tail is the target's least likely ids, as many as stay below the rest.

    Returns:
        [..., 1]; 1/2 where the two agree.

    Example:
        >>> student, target = torch.tensor([0.4, 0.4, 0.2]).log(), torch.tensor([0.7, 0.2, 0.1]).log()
        >>> head_share(student, target)
        tensor([0.5000])

    References:
        arXiv 2404.02657
    """
    ordered, ids = target_logp.sort(-1)
    target = ordered.exp()
    gap = (target - student_logp.gather(-1, ids).exp()).abs()
    in_tail = cumulative_sum(target) < 1 - head
    total = gap.sum(-1, keepdim=True)
    of_head = gap.masked_fill(in_tail, 0.0).sum(-1, keepdim=True)
    return torch.where(total > 0, of_head / total, 0.5)


def ratio_share(student_logp: Tensor, target_logp: Tensor) -> Tensor:
    r"""Compute ToDi's weight of the forward KL at each id, :math:`\sigma(\log q_v - \log p_v) = q_v / (q_v + p_v)`.

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.

    Returns:
        [..., V]; 1/2 where both exclude an id.

    Example:
        >>> ratio_share(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
        tensor([0.3333, 0.6000])

    References:
        arXiv 2505.16297
    """
    excluded = (student_logp == -math.inf) & (target_logp == -math.inf)
    return torch.sigmoid((target_logp - student_logp).masked_fill(excluded, 0.0))
