"""Weights of the agent's turns, by how far the student is from the teacher there and at first."""

from __future__ import annotations

import torch
from torch import Tensor

from veto_pl.functional.reduction import group_numbers


def step_weights(
    log_ratio: Tensor,
    mask: Tensor,
    turn_ids: Tensor | None,
    episodes: Tensor | None,
    cap: float,
    epsilon: float = 1e-6,
) -> Tensor:
    r"""Weigh turns at which the models disagree more than at the first less.

    .. math:: w_1 = 1, \qquad w_k = \min\left( \frac{d_1 + \epsilon}{d_k + \epsilon},\ 1 + \delta \right), \qquad
        d_k = \overline{\left| \log p_T - \log p_S \right|}_k

    with the mean over the tokens of turn k that count. The ratio is that of the paper's product over the steps,
    :math:`\prod_{j<k} (d_j + \epsilon) / (d_{j+1} + \epsilon)`, which telescopes.

    Args:
        log_ratio: [B, S] of the tokens.
        mask: [B, S] bool.
        turn_ids: [B, S] int64, the turn of each token; None where every completion is one turn.
        episodes: [B] int64, equal on rows of one episode; None where every row is one.
        cap: delta, at least 0.
        epsilon: keeps the ratio finite.

    Returns:
        [B, S]; the first turn of an episode with tokens that count is its first. 1 where nothing counts. It does not
        depend on how an episode is cut into rows.

    Example:
        >>> ratio, turns = torch.tensor([[0.2, -0.2, 0.4, 0.1]]), torch.tensor([[1, 1, 2, 3]])
        >>> step_weights(ratio, torch.ones(1, 4).bool(), turns, None, cap=0.2)
        tensor([[1.0000, 1.0000, 0.5000, 1.2000]])

    References:
        arXiv 2605.07725
    """
    if turn_ids is None or not mask.any():
        return torch.ones_like(log_ratio)
    most = int(turn_ids.amax()) + 1
    groups = group_numbers(mask, turn_ids, episodes).flatten()
    size = (len(mask) + 1) * most
    counts = log_ratio.new_zeros(size).index_add(0, groups, mask.flatten().to(log_ratio.dtype))
    sizes = log_ratio.abs().masked_fill(~mask, 0.0).flatten()
    distance = log_ratio.new_zeros(size).index_add(0, groups, sizes) / counts.clamp_min(1)
    table, there = distance.view(-1, most), counts.view(-1, most) > 0
    first = table.gather(1, there.int().argmax(1, keepdim=True))
    weights = ((first + epsilon) / (table + epsilon)).clamp(max=1 + cap)
    at_first = there & (there.cumsum(1) == 1)
    weights = weights.masked_fill(at_first | ~there, 1.0)
    return weights.flatten()[groups].view_as(log_ratio).masked_fill(~mask, 1.0)
