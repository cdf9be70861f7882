r"""Divergences with their gradients, token by token; [..., V] and [..., V] to [...] and [..., V].

Each function returns the value of its namesake in `veto_pl.functional.divergences` and the gradient of that value with
respect to the student's logits :math:`z`, where :math:`p = \mathrm{softmax}(z)`; :math:`q` is the target. A divergence
that depends on :math:`p` through :math:`A_v = \partial L / \partial p_v` has the gradient

.. math:: \frac{\partial L}{\partial z} = p \odot (A - \langle p, A \rangle)

so no graph is needed. As everywhere, 0 log 0 = 0, and an id that both exclude (-inf) has value and gradient 0.
"""

import torch
from torch import Tensor

from veto_pl.functional.alpha import log_power_mean, power_gap
from veto_pl.functional.alpha import renyi as renyi_value
from veto_pl.functional.expectation import expectation
from veto_pl.functional.scalars import Scalar, check_weight, is_one_of


def forward_kl(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return KL(q

    p) and its gradient :math:`p - q`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Numerics: the gradient is finite for every input, also where the value is infinite.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> forward_kl(student, target)[1]
        tensor([ 0.2500, -0.2500])
    """
    target = target_logp.exp()
    value, _ = expectation(target, target_logp - student_logp)
    return value, student_logp.exp().sub_(target)


def reverse_kl(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return KL(p

    q) and its gradient :math:`p\,(\log p - \log q - \mathrm{KL}(p \Vert q))`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Numerics: the expectation of the score is subtracted, so the gradient sums to 0 over the vocabulary.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> reverse_kl(student, target)[1]
        tensor([ 0.2747, -0.2747])
    """
    student = student_logp.exp()
    ratio = student_logp - target_logp
    value, ratio = expectation(student, ratio)
    return value, student.mul_(ratio.sub_(value.unsqueeze(-1)))


def generalized_jsd(student_logp: Tensor, target_logp: Tensor, beta: Scalar = 0.5) -> tuple[Tensor, Tensor]:
    r"""Return the generalised JSD and its gradient :math:`(1-\beta)\, p\,(\log p - \log m - \mathrm{KL}(p \Vert m))`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        beta: weight of the target in the mixture :math:`m = \beta q + (1-\beta) p`, in [0, 1].

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Raises:
        ValueError: `beta` outside [0, 1].

    Numerics: the mixture is formed from probabilities. That loses nothing: where it underflows, p and q do too, and
    the terms that it enters are below 1e-36.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> generalized_jsd(student, target)[1]
        tensor([ 0.0639, -0.0639])
    """
    check_weight("`beta` of the generalised JSD", beta)
    student, target = student_logp.exp(), target_logp.exp()
    # Buffers are reused from here on: a block of a vocabulary's size is what the loss head's speed depends on.
    mixture = _log(torch.lerp(student, target, beta))
    of_target, _ = expectation(target, target_logp - mixture)
    ratio = torch.sub(student_logp, mixture, out=mixture)
    of_student, ratio = expectation(student, ratio)
    gradient = student.mul_(ratio.sub_(of_student.unsqueeze(-1))).mul_(1 - beta)
    return beta * of_target + (1 - beta) * of_student, gradient


def skew_kl(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.1) -> tuple[Tensor, Tensor]:
    r"""Return the skew forward KL, KL(q

    m), and its gradient, with :math:`A = -(1-\alpha)\, q / m`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        alpha: weight of the target in the mixture :math:`m = \alpha q + (1-\alpha) p`, in [0, 1].

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Numerics: :math:`q / m` is the exponential of a difference of logarithms, bounded by :math:`1 / \alpha`; at
    `alpha` 0 it is the forward KL.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> bool(torch.equal(skew_kl(student, target, 0.0)[1], forward_kl(student, target)[1]))
        True
    """
    check_weight("`alpha` of a skew KL", alpha)
    if is_one_of(alpha, 0):
        return forward_kl(student_logp, target_logp)
    student, target = student_logp.exp(), target_logp.exp()
    ratio = target_logp - _log(torch.lerp(student, target, alpha))
    value, ratio = expectation(target, ratio)
    # The expectation may have put 0 in the place of the ratio where the target is 0; q / m is 0 there, not 1.
    return value, _through_softmax(student, ratio.exp_().mul_(alpha - 1).masked_fill_(target == 0, 0.0))


def skew_reverse_kl(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.1) -> tuple[Tensor, Tensor]:
    r"""Return the skew reverse KL, KL(p

    m), and its gradient, with :math:`A = \log (p / m) - \alpha\, p / m`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        alpha: weight of the student in the mixture :math:`m = (1-\alpha) q + \alpha p`, in [0, 1].

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Numerics: as `skew_kl`; at `alpha` 0 it is the reverse KL.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> bool(torch.equal(skew_reverse_kl(student, target, 0.0)[1], reverse_kl(student, target)[1]))
        True
    """
    check_weight("`alpha` of a skew KL", alpha)
    if is_one_of(alpha, 0):
        return reverse_kl(student_logp, target_logp)
    student = student_logp.exp()
    ratio = student_logp - _log(torch.lerp(target_logp.exp(), student, alpha))
    value, ratio = expectation(student, ratio)
    if isinstance(alpha, Tensor):
        return value, _through_softmax(student, ratio.sub_(ratio.exp().mul_(alpha)))
    return value, _through_softmax(student, ratio.sub_(ratio.exp(), alpha=alpha))


def total_variation(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the total variation and its gradient, with :math:`A = \tfrac12 \mathrm{sign}(p - q)`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.

    Returns:
        [...] in [0, 1], and [..., V] the gradient with respect to the student's logits.

    Numerics: where p equals q the subgradient 0 is taken.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> total_variation(student, target)[1]
        tensor([ 0.2500, -0.2500])
    """
    student = student_logp.exp()
    difference = student - target_logp.exp()
    return 0.5 * difference.abs().sum(-1), _through_softmax(student, difference.sign_().mul_(0.5))


def alpha_divergence(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.5) -> tuple[Tensor, Tensor]:
    r"""Return Amari's alpha divergence and its gradient :math:`(p \sum_u s_u - s) / \alpha`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        alpha: in [0, 1]; 0 is the reverse KL, 1 the forward KL.

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Numerics: with :math:`s = q^\alpha p^{1-\alpha} = b + x`, where :math:`b` is the nearer of the two and :math:`x` the
    `power_gap`, the difference is :math:`p - b + p \sum_u x_u - x`, which is small term by term.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> alpha_divergence(student, target)[1]
        tensor([ 0.2588, -0.2588])
    """
    check_weight("`alpha` of an alpha divergence", alpha)
    if is_one_of(alpha, 0, 1):
        return (forward_kl if alpha == 1 else reverse_kl)(student_logp, target_logp)
    gap = power_gap(student_logp, target_logp, alpha)
    student, total = student_logp.exp(), gap.sum(-1)
    gradient = torch.addcmul(-gap, student, total.unsqueeze(-1))
    if isinstance(alpha, Tensor):
        gradient += torch.where(alpha >= 0.5, student - target_logp.exp(), 0.0)
    elif alpha >= 0.5:
        gradient.add_(student).sub_(target_logp.exp())
    return total / (alpha * (alpha - 1)), gradient.div_(alpha)


def renyi(student_logp: Tensor, target_logp: Tensor, alpha: Scalar = 0.5) -> tuple[Tensor, Tensor]:
    r"""Return the Renyi divergence and its gradient :math:`p - r`, :math:`r \propto q^\alpha p^{1-\alpha}`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        alpha: the order, in (0, 1]; 1 is the forward KL.

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Raises:
        ValueError: `alpha` outside (0, 1].

    Numerics: `r` is a geometric bridge, so the gradient's absolute values sum to 2 at most.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> renyi(student, target)[1]
        tensor([ 0.1340, -0.1340])
    """
    if is_one_of(alpha, 1):
        return forward_kl(student_logp, target_logp)
    value = renyi_value(student_logp, target_logp, alpha)
    bridge = torch.softmax(log_power_mean(student_logp, target_logp, alpha), -1)
    return value, student_logp.exp().sub_(bridge)


def mixed_kl(student_logp: Tensor, target_logp: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mixed KL and its gradient :math:`g - p \sum_u g_u`, :math:`g = (1 - a)\, p\, (1 + \log p/q) - a\, q`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        target_logp: [..., V] log-probabilities of the target.
        share: [..., V] or [..., 1], the forward KL's share :math:`a`, held fixed.

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> mixed_kl(student, target, torch.tensor([1.0]))[1]
        tensor([ 0.2500, -0.2500])
    """
    student, target = student_logp.exp(), target_logp.exp()
    ratio = student_logp - target_logp
    reverse = (1 - share) * student
    surprise = torch.where(student > 0, ratio, 0.0)
    value = reverse * surprise - share * target * torch.where(target > 0, ratio, 0.0)
    pull = reverse * (1 + surprise) - share * target
    return value.sum(-1), pull.sub_(student.mul_(pull.sum(-1, keepdim=True)))


def negative_log_likelihood(student_logp: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the surprisal of a token, :math:`-\log p_y`, and its gradient :math:`p - e_y`.

    Args:
        student_logp: [..., V] log-probabilities of the student.
        token_ids: [...] int64, the tokens y.

    Returns:
        [...] nats, and [..., V] the gradient with respect to the student's logits.

    Example:
        >>> negative_log_likelihood(torch.tensor([0.25, 0.75]).log(), torch.tensor(1))[1]
        tensor([ 0.2500, -0.2500])
    """
    index = token_ids.unsqueeze(-1)
    gradient = student_logp.exp()
    gradient.scatter_add_(-1, index, gradient.new_full(index.shape, -1.0))
    return -student_logp.gather(-1, index).squeeze(-1), gradient


def _log(probability: Tensor) -> Tensor:
    """Take the logarithm in place, of at least the smallest normal number."""
    return probability.clamp_min_(torch.finfo(probability.dtype).tiny).log_()


def _through_softmax(probability: Tensor, score: Tensor) -> Tensor:
    """Return `p (A - <p, A>)`, the gradient in the logits; both arguments are overwritten."""
    score.sub_(torch.linalg.vecdot(probability, score).unsqueeze(-1))
    return probability.mul_(score)
