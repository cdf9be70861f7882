"""Coarser sets of outcomes on which two distributions are compared."""

import math

import torch
from torch import Tensor


def top_k_with_tail(logp: Tensor, ids: Tensor) -> Tensor:
    r"""Keep `ids` as they are and pool every other id into one tail outcome.

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


def members(ids: Tensor, of: Tensor) -> Tensor:
    """Mark the ids that are in another set, without a tensor of the vocabulary's size.

    Args:
        ids: [..., J] int64.
        of: [..., K] int64, K at least 1.

    Returns:
        [..., J] bool.

    Example:
        >>> members(torch.tensor([3, 1]), torch.tensor([1, 7, 0]))
        tensor([False,  True])
    """
    ordered = of.sort(-1).values
    place = torch.searchsorted(ordered, ids.contiguous()).clamp_max(of.shape[-1] - 1)
    return ordered.gather(-1, place) == ids


def top_k_ids(student_logp: Tensor, teacher_logp: Tensor, k: int, support: str) -> tuple[Tensor, Tensor]:
    """Return the ids of a set made of both models' likeliest, in a layout of fixed width.

    Args:
        student_logp: [..., V].
        teacher_logp: [..., V].
        k: ids of each model; all where there are fewer.
        support: `student`, `teacher`, `overlap`, `union` or `symmetric_difference` of the two sets.

    Returns:
        [..., 2K] int64 ids, first the student's and then the teacher's, each by falling probability; and [..., 2K]
        bool, True on the members of the set, each once. K is the smaller of k and V.

    Raises:
        KeyError: there is no such set.

    Example:
        >>> student, teacher = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.1, 0.3, 0.6]).log()
        >>> ids, chosen = top_k_ids(student, teacher, 2, "union")
        >>> ids[chosen]
        tensor([0, 1, 2])
    """
    k = min(k, student_logp.shape[-1])
    first, second = (logp.topk(k, -1).indices for logp in (student_logp, teacher_logp))
    shared = torch.cat([members(first, second), members(second, first)], -1)
    from_student = torch.arange(2 * k, device=shared.device).expand_as(shared) < k
    chosen = {
        "student": from_student,
        "teacher": ~from_student,
        "overlap": from_student & shared,
        "union": from_student | ~shared,
        "symmetric_difference": ~shared,
    }[support]
    return torch.cat([first, second], -1), chosen
