"""Bringing two vocabularies to the same ids."""

import torch
from torch import Tensor


def restrict(logits: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    r"""Keep the first ids and measure the probability of those that are dropped.

    .. math:: \text{discarded} = \sum_{v \ge n} p_v

    Args:
        logits: [..., R] with R >= `vocab_size` = n; the rows beyond it belong to no token.
        vocab_size: ids kept.

    Returns:
        [..., n] logits, and [...] discarded probability, without graph.

    Numerics: dropping is exact and shift-invariant; filling a shorter vocabulary up with zeros is neither.

    Example:
        >>> kept, discarded = restrict(torch.zeros(1, 4), 3)
        >>> kept.shape, discarded
        (torch.Size([1, 3]), tensor([0.2500]))
    """
    kept = logits[..., :vocab_size]
    if logits.shape[-1] == vocab_size:
        return kept, logits.new_zeros(logits.shape[:-1])
    with torch.no_grad():
        discarded = -torch.expm1(kept.logsumexp(-1) - logits.logsumexp(-1))
    return kept, discarded
