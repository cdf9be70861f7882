"""Sums over the vocabulary in which probability 0 counts 0."""

import torch
from torch import Tensor


def expectation(probability: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute :math:`\sum_v p_v x_v` with :math:`0 \cdot x = 0` for every :math:`x`, infinite and undefined ones too.

    Args:
        probability: [..., V].
        values: [..., V].

    Returns:
        [...] the sum, and [..., V] values that can be multiplied by the probabilities: `values` themselves where that
        already works, else a copy with 0 where the probability is 0.

    Numerics: NaN where a probability, or a value that has probability, is NaN. A diverged model stays visible.

    Example:
        >>> expectation(torch.tensor([1.0, 0.0]), torch.tensor([2.0, -torch.inf]))
        (tensor(2.), tensor([2., 0.]))
    """
    # 0 x inf shows in the sum. Looking costs a CPU nothing; others would have to wait for it, so they always mask.
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        total: Tensor = torch.linalg.vecdot(probability, values)
        if total.isfinite().all():
            return total, values
    values = values.masked_fill(probability == 0, 0.0)
    return torch.linalg.vecdot(probability, values), values
