"""Credit of sampled tokens: [B, S] scalars and a [B, S] mask to [B, S]. Masked positions are 0 in and 0 out."""

from collections.abc import Callable

import torch
from torch import Tensor


def reverse_cumsum(values: Tensor, mask: Tensor) -> Tensor:
    r"""Sum of what is still to come, :math:`R_t = \sum_{t' \ge t} r_{t'}`.

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
    return values.flip(1).cumsum(1).flip(1).masked_fill(~mask, 0.0)


def future_mean(values: Tensor, mask: Tensor) -> Tensor:
    r"""Length-normalised long-term return of MiniLLM: the mean over the tokens after this one.

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
    r"""Zero mean and unit variance over the tokens of the batch, on all ranks together.

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
    summed = all_reduce or (lambda value: value)
    count = summed(mask.sum().to(values.dtype)).clamp_min(1)
    mean = summed(values.masked_fill(~mask, 0.0).sum()) / count
    centred = (values - mean).masked_fill(~mask, 0.0)
    variance = summed(centred.square().sum()) / count
    return centred * torch.rsqrt(variance + epsilon)
