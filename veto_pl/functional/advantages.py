"""Credit of sampled tokens: [B, S] scalars and a [B, S] mask to [B, S]. Masked positions are 0 in and 0 out."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from veto_pl.functional.cumulative import cumulative_sum

FDivergence = Literal["forward_kl", "reverse_kl", "jsd"]
LARGEST_RATIO = 1e6
"""Ratios of probabilities are cut here, as float32 has no digits left beyond. By Markov's inequality a student samples
a token with a larger one once in a million, at most."""


def reverse_cumsum(values: Tensor, mask: Tensor) -> Tensor:
    r"""Sum the values from each token to the end of its row, :math:`R_t = \sum_{t' \ge t} r_{t'}`.

    Args:
        values: [B, S].
        mask: [B, S] bool.

    Returns:
        [B, S].

    Example:
        >>> reverse_cumsum(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, False]]))
        tensor([[3., 2., 0.]])
    """
    values = values.masked_fill(~mask, 0.0)
    return cumulative_sum(values.flip(1)).flip(1).masked_fill(~mask, 0.0)


def future_mean(values: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the length-normalised long-term return of MiniLLM: the mean over the tokens after this one.

    .. math:: R^{\mathrm{norm}}_{t+1} = \frac{1}{n_t} \sum_{t' > t} r_{t'}, \qquad n_t = |\{t' > t\}|

    Args:
        values: [B, S] rewards of the tokens.
        mask: [B, S] bool.

    Returns:
        [B, S]; 0 at the last token of a row, which has no future.

    Example:
        >>> future_mean(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, True]]))
        tensor([[3., 4., 0.]])

    References:
        Gu et al. 2023 (MiniLLM), arXiv 2306.08543, section 2.2 (length normalisation); rewards from t + 1 on, because
        the single-step term holds token t exactly.
    """
    values = values.masked_fill(~mask, 0.0)
    future = reverse_cumsum(values, mask) - values
    count = reverse_cumsum(mask.to(values.dtype), mask) - mask.to(values.dtype)
    return (future / count.clamp_min(1)).masked_fill(~mask, 0.0)


def whiten(
    values: Tensor, mask: Tensor, epsilon: float = 1e-8, all_reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    r"""Shift and scale values to zero mean and unit variance over the tokens of the batch, on all ranks together.

    .. math:: (x - \mu) / \sqrt{\sigma^2 + \epsilon}

    Args:
        values: [B, S].
        mask: [B, S] bool.
        epsilon: added to the (biased) variance.
        all_reduce: sums over the ranks; the tokens of this rank stand for themselves by default.

    Returns:
        [B, S]. It couples the rows of a batch: splitting the batch changes the result.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[-1.,  1.,  0.]])
    """
    shifted, count = _shifted(values, mask, all_reduce)
    squares = shifted.square().sum()
    variance = (squares if all_reduce is None else all_reduce(squares)) / count
    return shifted * torch.rsqrt(variance + epsilon)


def centred(values: Tensor, mask: Tensor, all_reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    r"""Shift values to zero mean over the tokens of the batch, on all ranks together.

    Args:
        values: [B, S].
        mask: [B, S] bool.
        all_reduce: sums over the ranks; the tokens of this rank stand for themselves by default.

    Returns:
        [B, S]. It couples the rows of a batch: splitting the batch changes the result.

    Example:
        >>> centred(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[-1.,  1.,  0.]])
    """
    return _shifted(values, mask, all_reduce)[0]


def _shifted(values: Tensor, mask: Tensor, all_reduce: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return the values without their mean over all ranks, 0 outside the mask, and the number inside, at least 1."""
    summed = all_reduce or (lambda value: value)
    count = summed(mask.sum().to(values.dtype)).clamp_min(1)
    mean = summed(values.masked_fill(~mask, 0.0).sum()) / count
    return (values - mean).masked_fill(~mask, 0.0), count


def discounted_sum(values: Tensor, mask: Tensor, discount: float) -> Tensor:
    r"""Sum the values from each token on with a discount, :math:`R_t = \sum_{t' \ge t} \gamma^{t' - t} r_{t'}`.

    Args:
        values: [B, S].
        mask: [B, S] bool. Masked positions add nothing, and time passes over them.
        discount: gamma in [0, 1]; 0 leaves the values as they are, 1 is `reverse_cumsum`.

    Returns:
        [B, S].

    Numerics: log2(S) vector additions, by doubling the horizon: the sum over the next 2k positions is that over the
    next k, plus :math:`\gamma^k` times the same k positions later.

    Example:
        >>> discounted_sum(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool), 0.5)
        tensor([[3., 4., 4.]])
    """
    total = values.masked_fill(~mask, 0.0)
    horizon, factor = 1, discount
    while horizon < total.shape[1] and factor > 0:
        total = total + factor * pad(total[:, horizon:], (0, horizon))
        horizon, factor = 2 * horizon, factor * factor
    return total.masked_fill(~mask, 0.0)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens of each row.

    Args:
        values: [B, S].
        mask: [B, S] bool.

    Returns:
        [B]; 0 for a row without tokens.

    Example:
        >>> row_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([2.])
    """
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp_min(1)


def extrapolated_ratio(teacher_logp: Tensor, student_logp: Tensor, reference_logp: Tensor, strength: float) -> Tensor:
    r"""Compute the credit of a token that leads beyond the teacher, away from a reference.

    .. math:: A = \lambda (\log T - \log B) - (\log S - \log B)
        = (\log T - \log S) + (\lambda - 1) (\log T - \log B)

    Args:
        teacher_logp: [...] log-probability of the token.
        student_logp: [...] the same under the student.
        reference_logp: [...] the same under the reference.
        strength: lambda.

    Returns:
        [...]; at lambda = 1 exactly the log-ratio of teacher and student, whatever the reference says.

    Example:
        >>> t, s, b = torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-3.0])
        >>> extrapolated_ratio(t, s, b, 1.0), extrapolated_ratio(t, s, b, 1.5)
        (tensor([1.]), tensor([2.]))

    References:
        arXiv 2602.12125
    """
    ratio = teacher_logp - student_logp
    return ratio if strength == 1 else ratio + (strength - 1) * (teacher_logp - reference_logp)


def reward_floor(mixture: float) -> float:
    r"""Return the lowest log-ratio that REOPOLD lets through, :math:`\log \frac{\lambda}{1 - \lambda}`.

    Args:
        mixture: lambda in (0, 1).

    Returns:
        The floor in nats; negative below 1/2.

    Example:
        >>> round(reward_floor(0.2), 4)
        -1.3863

    References:
        arXiv 2603.11137
    """
    return math.log(mixture) - math.log1p(-mixture)


def most_uncertain(entropy: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """Mark the tokens of each row with the highest entropy.

    Args:
        entropy: [B, S].
        mask: [B, S] bool.
        fraction: of the n tokens of a row, fraction x n, rounded up, are taken; of equal entropies the earlier ones.

    Returns:
        [B, S] bool. Each row is looked at alone, so the other rows of a batch do not matter.

    Example:
        >>> most_uncertain(torch.tensor([[0.1, 0.9, 0.5]]), torch.ones(1, 3, dtype=torch.bool), 0.5)
        tensor([[False,  True,  True]])
    """
    order = entropy.masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1)
    wanted = fraction * mask.sum(1, keepdim=True).double()
    return mask & (rank < (wanted - 1e-6).ceil())  # 0.55 x 100 is a little above 55


def share_before(values: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the share of a row's total that lies before each token, :math:`\sum_{i<t} x_i / \sum_i x_i`.

    Args:
        values: [B, S], none negative.
        mask: [B, S] bool.

    Returns:
        [B, S] in [0, 1]; 0 at the first token, and in a row whose total is 0.

    Example:
        >>> share_before(torch.tensor([[1.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
        tensor([[0.0000, 0.2500, 0.7500]])

    References:
        arXiv 2606.22600
    """
    values = values.masked_fill(~mask, 0.0)
    total = values.sum(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return ((cumulative_sum(values) - values) / total).clamp(0, 1).masked_fill(~mask, 0.0)


def softsign(values: Tensor, mask: Tensor) -> Tensor:
    r"""Bound values by the softsign, in units of each row's mean size: :math:`x_t / (\overline{|x|} + |x_t|)`.

    Args:
        values: [B, S].
        mask: [B, S] bool.

    Returns:
        [B, S] in (-1, 1), of the same signs and order; 0 in a row whose values are all 0.

    Example:
        >>> softsign(torch.tensor([[3.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
        tensor([[ 0.6000, -0.3333]])

    References:
        arXiv 2609.16937, equation 8
    """
    scale = row_mean(values.abs(), mask)[:, None] + values.abs()
    return (values / scale.clamp_min(torch.finfo(values.dtype).tiny)).masked_fill(~mask, 0.0)


def divergence_credit(log_ratio: Tensor, divergence: FDivergence) -> Tensor:
    r"""Compute the credit of a sampled token whose expected gradient is that of an f-divergence.

    .. math:: w(u) = u f'(u) - f(u), \qquad D_f = \mathrm{E}_{y \sim p_S} f(u), \quad u = p_T(y) / p_S(y)

    The gradient of D is :math:`-\mathrm{E}\, w(u) \nabla \log p_S(y)`; the credit :math:`-f(u)` of a reward that is
    held fixed lacks :math:`u f'(u)`. A multiple of u - 1 may be added to f, which adds a constant to w; here w(1) = 0:
    log u for the reverse KL, u - 1 for the forward KL, and log((1 + u) / 2) / 2 for the Jensen-Shannon divergence.

    Args:
        log_ratio: [...] log u.
        divergence: `forward_kl`, KL(teacher || student); `reverse_kl`; or `jsd`.

    Returns:
        [...], increasing in u and 0 where the models agree.

    Numerics: the forward KL cuts u at a million.

    Example:
        >>> ratio = torch.tensor([1.0, 3.0]).log()
        >>> divergence_credit(ratio, "forward_kl"), divergence_credit(ratio, "jsd")
        (tensor([0., 2.]), tensor([0.0000, 0.3466]))

    References:
        arXiv 2606.01039, table 1
    """
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "forward_kl":
        return log_ratio.clamp(max=math.log(LARGEST_RATIO)).expm1()
    return 0.5 * (softplus(log_ratio) - math.log(2))
