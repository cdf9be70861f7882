r"""Divergences of a student from a target, token by token.

Every function maps `(student_logp, target_logp)`, both [..., V] and normalised log-probabilities, to [...] in nats.
Nothing is masked, reduced over tokens or detached. An id that has probability 0 on both sides (-inf) contributes
nothing, neither to the value nor to the gradient. Write :math:`p` for the student and :math:`q` for the target.
"""

import math

import torch
from torch import Tensor

from veto_pl.functional.scalars import Scalar, check_weight


def forward_kl(student_logp: Tensor, target_logp: Tensor) -> Tensor:
    r"""Compute the forward Kullback-Leibler divergence, which makes the student cover the target's mass.

    .. math:: \mathrm{KL}(q \Vert p) = \sum_v q_v (\log q_v - \log p_v)

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.

    Returns:
        [...] nats; :math:`+\infty` where the target puts mass on an id that the student excludes.

    Numerics: log-space throughout; 0 log 0 = 0; exactly 0 for identical inputs. Rounding may give -1e-7 in float32.

    Example:
        >>> student = torch.tensor([0.5, 0.5]).log()
        >>> target = torch.tensor([0.25, 0.75]).log()
        >>> round(float(forward_kl(student, target)), 4)
        0.1308

    References:
        Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    target = target_logp.exp()
    # Probabilities that underflow count as 0 like those that are: against -inf they would give NaN.
    return (target * torch.where(target > 0, target_logp - student_logp, 0.0)).sum(-1)


def reverse_kl(student_logp: Tensor, target_logp: Tensor) -> Tensor:
    r"""Compute the reverse Kullback-Leibler divergence, which keeps the student within the target's modes.

    .. math:: \mathrm{KL}(p \Vert q) = \sum_v p_v (\log p_v - \log q_v)

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.

    Returns:
        [...] nats; :math:`+\infty` where the student puts mass on an id that the target excludes.

    Numerics: `forward_kl` with the roles exchanged.

    Example:
        >>> student = torch.tensor([0.5, 0.5]).log()
        >>> target = torch.tensor([0.25, 0.75]).log()
        >>> round(float(reverse_kl(student, target)), 4)
        0.1438

    References:
        Gu et al. 2023 (MiniLLM), arXiv 2306.08543, equation 1.
    """
    return forward_kl(target_logp, student_logp)


def generalized_jsd(student_logp: Tensor, target_logp: Tensor, beta: Scalar = 0.5) -> Tensor:
    r"""Compute the generalised Jensen-Shannon divergence.

    .. math:: \beta\,\mathrm{KL}(q \Vert m) + (1-\beta)\,\mathrm{KL}(p \Vert m), \qquad m = \beta q + (1-\beta) p

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        beta: weight of the target in the mixture, in [0, 1].

    Returns:
        [...] nats, at most :math:`-\beta\log\beta-(1-\beta)\log(1-\beta)`.

    Raises:
        ValueError: `beta` outside [0, 1].

    Numerics: the value tends to 0 at both end points, where only value / `beta` tends to the forward KL and
    value / (1 - `beta`) to the reverse KL. Published trainers jump to the full KL there; this function does not.

    Example:
        >>> one, other = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
        >>> round(float(generalized_jsd(one, other, 0.5)), 4) == round(math.log(2), 4)
        True

    References:
        Agarwal et al. 2023 (GKD), arXiv 2306.13649, equation 1.
    """
    check_weight("`beta` of the generalised JSD", beta)
    mixture = log_mixture(target_logp, student_logp, beta)
    return beta * forward_kl(mixture, target_logp) + (1 - beta) * forward_kl(mixture, student_logp)


def skew_kl(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.1) -> Tensor:
    r"""Compute the skew forward KL: the student is smoothed by the target, so the value stays finite.

    .. math:: \mathrm{KL}(q \Vert \alpha q + (1-\alpha) p)

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        alpha: weight of the target in the mixture, in [0, 1]; 0 is the forward KL.

    Returns:
        [...] nats, at most :math:`-\log\alpha`.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Numerics: the mixture is formed by `logaddexp`, never in probability space.

    Example:
        >>> one, other = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
        >>> round(float(skew_kl(one, other, 0.1)), 4) == round(-math.log(0.1), 4)
        True

    References:
        Ko et al. 2024 (DistiLLM), arXiv 2402.03898, equation 4.
    """
    return forward_kl(log_mixture(target_logp, student_logp, alpha), target_logp)


def skew_reverse_kl(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.1) -> Tensor:
    r"""Compute the skew reverse KL: the target is smoothed by the student, so the value stays finite.

    .. math:: \mathrm{KL}(p \Vert (1-\alpha) q + \alpha p)

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        alpha: weight of the student in the mixture, in [0, 1]; 0 is the reverse KL.

    Returns:
        [...] nats, at most :math:`-\log\alpha`.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Numerics: `skew_kl` with the roles exchanged.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> bool(skew_reverse_kl(student, target, 0.0) == reverse_kl(student, target))
        True

    References:
        Ko et al. 2024 (DistiLLM), arXiv 2402.03898, equation 5.
    """
    return skew_kl(target_logp, student_logp, alpha)


def total_variation(student_logp: Tensor, target_logp: Tensor) -> Tensor:
    r"""Compute the total variation distance.

    .. math:: \tfrac{1}{2} \sum_v |p_v - q_v|

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.

    Returns:
        [...] in [0, 1].

    Numerics: the one divergence here that leaves log-space; its gradient is 0 where the two agree.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> round(float(total_variation(student, target)), 4)
        0.25

    References:
        Wen et al. 2023 (f-DISTILL), arXiv 2307.15190, section 3.
    """
    return 0.5 * (student_logp.exp() - target_logp.exp()).abs().sum(-1)


def log_mixture(first_logp: Tensor, second_logp: Tensor, weight: Scalar) -> Tensor:
    r"""Compute the logarithm of a mixture, :math:`\log(w\,a + (1-w)\,b)`.

    Args:
        first_logp: [..., V] log-probabilities :math:`a`.
        second_logp: [..., V] log-probabilities :math:`b`.
        weight: :math:`w`, in [0, 1]; a tensor, 0-dim or [..., 1], of numbers strictly between is not checked.

    Returns:
        [..., V] log-probabilities.

    Raises:
        ValueError: `weight` is a number outside [0, 1].

    Numerics: exact at both end points; -inf on both sides stays -inf with a zero gradient, where `logaddexp` has NaN.

    Example:
        >>> a, b = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
        >>> log_mixture(a, b, 0.25).exp()
        tensor([0.2500, 0.7500])
    """
    if isinstance(weight, Tensor):
        return _log_sum(first_logp, second_logp, weight.log(), torch.log1p(-weight))
    check_weight("The weight of a mixture", weight)
    if weight in (0, 1):
        return first_logp if weight == 1 else second_logp
    return _log_sum(first_logp, second_logp, math.log(weight), math.log1p(-weight))


def _log_sum(first_logp: Tensor, second_logp: Tensor, one: Scalar, other: Scalar) -> Tensor:
    """Compute log(e^one a + e^other b)."""
    excluded = (first_logp == -math.inf) & (second_logp == -math.inf)
    first = first_logp.masked_fill(excluded, 0.0) + one
    second = second_logp.masked_fill(excluded, 0.0) + other
    # With one side at -inf, `logaddexp` is exact and its gradient finite; only -inf against -inf is not.
    return torch.logaddexp(first, second).masked_fill(excluded, -math.inf)
