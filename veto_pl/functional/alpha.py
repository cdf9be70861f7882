r"""Amari's alpha divergences and Renyi's, which have the KLs as limits, token by token; [..., V] to [...].

Both are functions of :math:`\sum_v q_v^\alpha p_v^{1-\alpha}`, which tends to 1 at either end, so they are differences
of nearly equal numbers divided by a small one. `power_gap` forms the difference without cancellation.
"""

import math

import torch
from torch import Tensor

from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.functional.scalars import Scalar, check_weight, is_one_of


def alpha_divergence(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.5) -> Tensor:
    r"""Compute Amari's alpha divergence, which lies between the reverse KL (0) and the forward KL (1).

    .. math:: \frac{1 - \sum_v q_v^\alpha p_v^{1-\alpha}}{\alpha (1 - \alpha)}

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.
        alpha: in [0, 1]; 0 is the reverse KL, 1 the forward KL, 1/2 four times the squared Hellinger distance.

    Returns:
        [...] nats, at most :math:`1 / (\alpha (1 - \alpha))`.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Numerics: exact to rounding as `alpha` nears 0 or 1, see `power_gap`.

    Example:
        >>> one, other = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
        >>> float(alpha_divergence(one, other, 0.5))
        4.0

    References:
        Amari 1985, "Differential-Geometrical Methods in Statistics"; Cichocki and Amari 2010, doi:10.3390/e12061532
    """
    check_weight("`alpha` of an alpha divergence", alpha)
    if is_one_of(alpha, 0, 1):
        return (forward_kl if alpha == 1 else reverse_kl)(student_logp, target_logp)
    return -power_gap(student_logp, target_logp, alpha).sum(-1) / (alpha * (1 - alpha))


def renyi(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.5) -> Tensor:
    r"""Compute the Renyi divergence of the target from the student; at order 1 it is the forward KL.

    .. math:: \frac{1}{\alpha - 1} \log \sum_v q_v^\alpha p_v^{1-\alpha}

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.
        alpha: the order, in (0, 1]; it tends to 0 with the order wherever the target excludes nothing.

    Returns:
        [...] nats; :math:`+\infty` where the two share no id.

    Raises:
        ValueError: `alpha` outside (0, 1].

    Numerics: `log1p` of the sum's distance from 1 while that is below 1/2, a log-sum-exp beyond.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> round(float(renyi(student, target, 0.5)), 4)
        0.0693

    References:
        van Erven and Harremoes 2014, arXiv 1206.2459, equation 1
    """
    if not isinstance(alpha, Tensor) and not 0 < alpha <= 1:
        raise ValueError(f"`alpha` of a Renyi divergence must lie in (0, 1], got {alpha}.")
    if is_one_of(alpha, 1):
        return forward_kl(student_logp, target_logp)
    gap = power_gap(student_logp, target_logp, alpha).sum(-1)
    near = torch.log1p(gap.clamp_min(-0.5))
    far = torch.logsumexp(log_power_mean(student_logp, target_logp, alpha), -1)
    return torch.where(gap > -0.5, near, far) / (alpha - 1)


def power_gap(student_logp: Tensor, target_logp: Tensor, alpha: Scalar) -> Tensor:
    r"""Subtract the nearer of the two distributions, :math:`b`, from their weighted geometric mean, id by id.

    .. math:: q_v^\alpha p_v^{1-\alpha} - b_v, \qquad b = q \text{ for } \alpha \ge 1/2, \text{ else } p

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.
        alpha: weight of the target, in [0, 1].

    Returns:
        [..., V]; the sum over the ids is :math:`\sum_v q_v^\alpha p_v^{1-\alpha} - 1`, at most 0.

    Numerics: :math:`b\,(e^t - 1)` by `expm1`, so each term has full relative precision however near `alpha` is to an
    end; where the other model's probability is far larger, as a difference of two numbers in [0, 1].

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> power_gap(student, target, 0.5)
        tensor([ 0.1036, -0.1376])
    """
    excluded = (student_logp == -math.inf) & (target_logp == -math.inf)
    student, target = (logp.masked_fill(excluded, 0.0) for logp in (student_logp, target_logp))
    if isinstance(alpha, Tensor):
        near_target = alpha >= 0.5
        base, other = torch.where(near_target, target, student), torch.where(near_target, student, target)
        power: Scalar = torch.minimum(alpha, 1 - alpha)
    else:
        base, other, power = (target, student, 1 - alpha) if alpha >= 0.5 else (student, target, alpha)
    shift = power * (other - base)
    near = base.exp() * torch.expm1(shift.clamp_max(1.0))
    far = ((1 - power) * base + power * other).exp() - base.exp()
    return torch.where(shift < 1, near, far).masked_fill(excluded, 0.0)


def log_power_mean(student_logp: Tensor, target_logp: Tensor, alpha: Scalar) -> Tensor:
    r"""Compute the logarithm of the weighted geometric mean, :math:`\alpha \log q + (1 - \alpha) \log p`.

    Args:
        student_logp: [..., V] log-probabilities of the student, :math:`p`.
        target_logp: [..., V] log-probabilities of the target, :math:`q`.
        alpha: weight of the target, in (0, 1].

    Returns:
        [..., V], not normalised; its softmax is the geometric bridge between the two.

    Example:
        >>> log_power_mean(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log(), 0.5).exp()
        tensor([0.3536, 0.6124])
    """
    return alpha * target_logp + (1 - alpha) * student_logp
