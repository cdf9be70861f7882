"""Coarser sets of outcomes on which two distributions are compared."""

import math

import torch
from torch import Tensor


def top_k_with_tail(logp: Tensor, ids: Tensor) -> Tensor:
    r"""Keeps `ids` as they are and pools every other id into one tail outcome.

    .. math:: (\log p_{v_1}, \dots, \log p_{v_k}, \log \sum_{v \notin \{v_i\}} p_v)

    By the data-processing inequality, a KL over these k + 1 outcomes is a lower bound of the KL over all ids, and never
    negative; without the tail it can be.

    Args:
        logp: [..., V] log-probabilities.
        ids: [..., K] int64, distinct, K < V.

    Returns:
        [..., K + 1] normalised log-probabilities, the tail last.

    Raises:
        ValueError: K is not below V.

    Numerics: the tail is the log-sum of the ids left over, not log(1 - sum), so small tails keep their precision.

    Example:
        >>> logp = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> top_k_with_tail(logp, torch.tensor([0])).exp()
        tensor([0.5000, 0.5000])
    """
    if ids.shape[-1] >= logp.shape[-1]:
        raise ValueError(f"A tail needs fewer kept ids than outcomes, got {ids.shape[-1]} of {logp.shape[-1]}.")
    kept = logp.gather(-1, ids)
    rest = logp.scatter(-1, ids, -math.inf)
    excluded = rest.isneginf().all(-1, keepdim=True)
    tail = torch.logsumexp(rest.masked_fill(excluded, 0.0), -1, keepdim=True).masked_fill(excluded, -math.inf)
    return torch.cat([kept, tail], -1)
