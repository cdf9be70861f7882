"""Diagnostics of two distributions, to log beside a loss, token by token; [..., V] to [...]."""

import torch
from torch import Tensor

from veto_pl.functional.expectation import expectation
from veto_pl.functional.supports import top_k_ids


def entropy(logp: Tensor) -> Tensor:
    r"""Compute the Shannon entropy, :math:`-\sum_v p_v \log p_v`.

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
    """Return 1 where both models prefer the same id, else 0.

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
    r"""Compute how much sharper a target is than the teacher, :math:`H(p_T) - H(Q)`.

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
    r"""Compare two distributions by entropy, both KLs and their likeliest ids, forming each probability once.

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


def overlap(student_logp: Tensor, teacher_logp: Tensor, k: int = 16) -> dict[str, Tensor]:
    r"""Measure what the k likeliest ids of both models have in common.

    .. math:: \frac{|S_k \cap T_k|}{k}, \qquad \sum_{v \in S_k \cap T_k} p_v, \qquad
        \sum_{v \in S_k \cap T_k} \bar p_v (\log \bar q_v - \log \bar p_v)

    Args:
        student_logp: [..., V] normalised log-probabilities, :math:`p`; :math:`\bar p` is that renormalised over the
            shared ids.
        teacher_logp: [..., V], :math:`q`; :math:`\bar q` likewise.
        k: ids of each model; all where there are fewer.

    Returns:
        `overlap_ratio`, the share of ids that both have; `overlap_mass`, the student's probability of those, ids
        aside that a model excludes; and
        `overlap_advantage`, what the teacher would have of those, in nats, at most 0, which it reaches where both
        weigh them alike, and where there are none; each [...].

    Example:
        >>> student, teacher = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.3, 0.6, 0.1]).log()
        >>> {name: round(float(value), 4) for name, value in overlap(student, teacher, 2).items()}
        {'overlap_ratio': 1.0, 'overlap_mass': 0.8, 'overlap_advantage': -0.1771}

    References:
        arXiv 2604.13016
    """
    ids, shared = top_k_ids(student_logp, teacher_logp, k, "overlap")
    student, teacher = student_logp.gather(-1, ids), teacher_logp.gather(-1, ids)
    weighed = shared & (student > -torch.inf) & (teacher > -torch.inf)  # a model may have fewer than k ids to name
    student, teacher = (logp.masked_fill(~weighed, -torch.inf) for logp in (student, teacher))
    totals = student.logsumexp(-1, keepdim=True), teacher.logsumexp(-1, keepdim=True)
    weight = (student - totals[0]).exp().masked_fill(~weighed, 0.0)
    gain = teacher - totals[1] - (student - totals[0])
    return {
        "overlap_ratio": shared.sum(-1).to(student.dtype) / (ids.shape[-1] // 2),
        "overlap_mass": student.exp().sum(-1),
        "overlap_advantage": (weight * torch.where(weight > 0, gain, 0.0)).sum(-1),
    }


def entropy_gap(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    r"""Compute how far apart the entropies of the models are, :math:`|H(q) - H(p)|`.

    Args:
        student_logp: [..., V] normalised log-probabilities.
        teacher_logp: [..., V].

    Returns:
        [...] nats.

    Example:
        >>> entropy_gap(torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log())
        tensor([0.6931])

    References:
        arXiv 2604.13016
    """
    return (entropy(teacher_logp) - entropy(student_logp)).abs()


def top_k_mass(logp: Tensor, k: int = 16) -> Tensor:
    """Return the probability of a model's own k likeliest ids, which is what a truncation to them covers.

    Args:
        logp: [..., V] normalised log-probabilities.
        k: ids; all where there are fewer.

    Returns:
        [...] in [0, 1].

    Example:
        >>> top_k_mass(torch.tensor([[0.5, 0.3, 0.2]]).log(), 2)
        tensor([0.8000])
    """
    return logp.topk(min(k, logp.shape[-1]), -1).values.exp().sum(-1)


def hidden_kl(first_logp: Tensor, second_logp: Tensor, ids: Tensor) -> Tensor:
    r"""Compute the part of a KL that is lost when all ids but a few are pooled into one tail.

    .. math:: \mathrm{KL}(p \Vert q) - \mathrm{KL}(\text{pooled}) = P\, \mathrm{KL}(p|_{tail} \Vert q|_{tail}),
        \qquad P = \sum_{v \in tail} p_v

    It is exact, by the chain rule. So it is at least 0, and with the tail mass Q of q at most
    :math:`P\,(\max_{v \in tail} \log (p_v / q_v) - \log (P / Q))`: a small tail of p hides little.

    Args:
        first_logp: [..., V] normalised log-probabilities, :math:`p`.
        second_logp: [..., V], :math:`q`.
        ids: [..., K] int64, the ids that are kept, distinct.

    Returns:
        [...] nats; 0 where nothing is pooled, and where q has no tail: the pooled KL is infinite then as well.

    Numerics: 0 log 0 = 0; rounding may give -1e-7 in float32.

    Example:
        >>> first, second = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.125, 0.375]]).log()
        >>> hidden_kl(first, second, torch.tensor([[0]]))
        tensor([0.0719])
    """
    first, second = (logp.scatter(-1, ids, -torch.inf) for logp in (first_logp, second_logp))
    weight = first.exp()
    mass = weight.sum(-1)
    of_tail = (weight * torch.where(weight > 0, first - second, 0.0)).sum(-1)
    pooled = mass * torch.where(mass > 0, first.logsumexp(-1) - second.logsumexp(-1), 0.0)
    return torch.where(second.isneginf().all(-1), 0.0, of_tail - pooled)


def _agree(first_logp: Tensor, second_logp: Tensor) -> Tensor:
    """Return 1 where an id is likeliest for both, else 0.

    The sum is at most that of the maxima, and reaches it at such an id alone. The three maxima need one pass, where
    places of maxima, or distances to them, need another; ids that differ by less than rounding count as one.
    """
    likeliest = first_logp.amax(-1) + second_logp.amax(-1)
    return ((first_logp + second_logp).amax(-1) == likeliest).to(first_logp.dtype)
