"""The only place where a mask meets a sum. Nothing is divided by a batch: totals and weights add up elsewhere."""

from torch import Tensor


def token_sum(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the tokens that count, and count them.

    Args:
        values: [B, S]; what stands on masked positions is ignored, NaN included.
        mask: [B, S] bool.

    Returns:
        Two scalars. An empty mask gives a total of 0 that is still connected to the graph of `values`.

    Example:
        >>> import torch
        >>> token_sum(torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[True, True, False]]))
        (tensor(3.), tensor(2.))
    """
    return values.masked_fill(~mask, 0.0).sum(), mask.sum().float()


def sequence_mean_sum(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the means over each row's tokens, and count the rows that have any.

    Args:
        values: [B, S]; what stands on masked positions is ignored.
        mask: [B, S] bool.

    Returns:
        Two scalars. A row without tokens counts for nothing.

    Example:
        >>> import torch
        >>> sequence_mean_sum(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[True, True], [True, False]]))
        (tensor(7.), tensor(2.))
    """
    lengths = mask.sum(1)
    means = values.masked_fill(~mask, 0.0).sum(1) / lengths.clamp_min(1)
    return means.sum(), (lengths > 0).sum().float()
