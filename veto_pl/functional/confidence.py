"""How much each of several speakers counts, by the confidence that they tell."""

import torch
from torch import Tensor


def confidence_weights(confidence: Tensor, present: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the softmax of confidences over those that are present, or equal shares where one of them tells none.

    .. math:: w_k = \frac{\exp(c_k / \tau)}{\sum_{j\ \text{present}} \exp(c_j / \tau)}

    Args:
        confidence: [..., K], usually in [0, 1]; NaN where none was told.
        present: [..., K] bool.
        temperature: tau, above 0.

    Returns:
        [..., K], 0 for those who are absent; all 0 where nobody is present.

    Example:
        >>> told = torch.tensor([[0.9, 0.3], [0.9, float("nan")], [0.9, float("nan")]])
        >>> confidence_weights(told, torch.tensor([[True, True], [True, True], [True, False]]))
        tensor([[0.6457, 0.3543],
                [0.5000, 0.5000],
                [1.0000, 0.0000]])

    References:
        arXiv 2605.01347
    """
    unsure = (confidence.isnan() & present).any(-1, keepdim=True)
    scores = torch.where(unsure, 0.0, confidence / temperature).masked_fill(~present, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0)
