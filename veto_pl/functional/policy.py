"""Policy-gradient terms over sampled tokens; every argument and result is [...], one number per token."""

import math

import torch
from torch import Tensor


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: float) -> Tensor:
    r"""Compute the clipped surrogate loss of PPO.

    .. math:: -\min(\rho A,\; \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A), \qquad \rho = \pi(y) / \pi_{old}(y)

    Args:
        logp: [...] log-probability of the sampled token, with graph.
        old_logp: [...] the same under the policy that the ratio is taken to, without graph.
        advantage: [...] credit of the token, without graph.
        clip: epsilon > 0.

    Returns:
        [...] loss. Where `old_logp` equals `logp` its gradient is that of :math:`-A \log \pi`.

    Numerics: the ratio is the exponential of a difference and can overflow for a policy that has moved far.

    Example:
        >>> logp = torch.tensor([-1.0], requires_grad=True)
        >>> clipped_surrogate(logp, logp.detach(), torch.tensor([2.0]), 0.2).backward()
        >>> logp.grad
        tensor([-2.])

    References:
        Schulman et al. 2017, arXiv 1707.06347, equation 7.
    """
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def importance_weight(logp: Tensor, sampler_logp: Tensor, maximum: float) -> Tensor:
    r"""Compute the truncated importance weight, :math:`\min(\pi(y) / \mu(y), c)`.

    Args:
        logp: [...] log-probability of the token under the policy that is trained.
        sampler_logp: [...] the same under the distribution that sampled it.
        maximum: the truncation c.

    Returns:
        [...] weights in [0, c].

    Numerics: clamped in log-space, so it never overflows.

    Example:
        >>> importance_weight(torch.tensor([-1.0]), torch.tensor([-9.0]), 2.0)
        tensor([2.])

    References:
        Ionides 2008, "Truncated importance sampling".
    """
    return (logp - sampler_logp).clamp(max=math.log(maximum)).exp()
