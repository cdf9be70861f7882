"""What a right hint says of a token beyond wrong ones, and what becomes of the outcome of a completion by it."""

from __future__ import annotations

import torch
from torch import Tensor


def contrast_of_hints(right_logp: Tensor, wrong_logp: Tensor) -> Tensor:
    r"""Compute how much likelier tokens are behind a right hint than behind a wrong one, in nats.

    .. math:: \log p(y \mid h^+) - \log \frac1K \sum_k p(y \mid h^-_k)

    Args:
        right_logp: [B, S].
        wrong_logp: [K, B, S]; -inf under hints that there are not, which do not count in K.

    Returns:
        [B, S]; 0 where there is no wrong hint.

    Example:
        >>> wrong = torch.tensor([[[0.1]], [[0.3]]]).log()
        >>> round(float(contrast_of_hints(torch.tensor([[0.4]]).log(), wrong).exp()), 4)
        2.0

    References:
        arXiv 2606.11709
    """
    count = (wrong_logp > -torch.inf).sum(0)
    wrong = wrong_logp.logsumexp(0) - count.clamp_min(1).to(wrong_logp.dtype).log()
    return torch.where(count > 0, right_logp - wrong, 0.0)


def two_path_credit(outcome: Tensor, shift: Tensor, chosen: Tensor, mask: Tensor, weight: float) -> Tensor:
    r"""Shift the outcome at chosen tokens, within its sign, and let chosen tokens and others be means of their own.

    .. math:: \frac1n \sum_t C_t = \frac{1}{|U|} \sum_{t \in U} A + \frac{\eta}{|C|} \sum_{t \in C} A'_t

    with the chosen tokens C and the others U of a row of n tokens, and :math:`A' = \max(A + e, 0)` where A is above 0,
    :math:`\min(A + e, 0)` where it is below, and 0 where it is 0. A path without tokens is 0.

    Args:
        outcome: A, [B, 1].
        shift: e, [B, S].
        chosen: [B, S] bool, within the mask.
        mask: [B, S] bool.
        weight: eta.

    Returns:
        C, [B, S]; 0 where the mask is False.

    Example:
        >>> mask = torch.tensor([[True, True, True]])
        >>> chosen = torch.tensor([[True, False, False]])
        >>> two_path_credit(torch.tensor([[1.0]]), torch.tensor([[0.5, 0.0, 0.0]]), chosen, mask, 1.0)
        tensor([[4.5000, 1.5000, 1.5000]])

    References:
        arXiv 2606.11709
    """
    moved = outcome + shift
    within = torch.where(outcome > 0, moved.clamp_min(0), moved.clamp_max(0)) * (outcome != 0)
    whole, selected = mask.sum(1, keepdim=True), chosen.sum(1, keepdim=True)
    of_chosen = weight * within * whole / selected.clamp_min(1)
    of_others = outcome * whole / (whole - selected).clamp_min(1)
    return torch.where(chosen, of_chosen, of_others).masked_fill(~mask, 0.0)
