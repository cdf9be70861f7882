"""The only place where a mask meets a sum. Nothing is divided by a batch: totals and weights add up elsewhere."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "turn", "episode"]
"""What weighs alike: tokens, rows, the agent's turns, or episodes."""


def aggregated(
    aggregation: Aggregation,
    values: Tensor,
    mask: Tensor,
    turn_ids: Tensor | None = None,
    episodes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum what weighs alike, and count it: the tokens, or the means over rows, turns or episodes that have any.

    Turns and episodes may lie in one row or in several; how they are cut into rows makes no difference.

    Args:
        aggregation: what weighs alike.
        values: [B, S]; what stands on masked positions is ignored.
        mask: [B, S] bool.
        turn_ids: [B, S] int64, k on tokens of the k-th turn; None where each row is one turn.
        episodes: [B] int64, equal on rows of one episode; None where each row is one.

    Returns:
        Two scalars.

    Example:
        >>> import torch
        >>> values, mask = torch.tensor([[1.0, 3.0, 8.0], [4.0, 0.0, 0.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
        >>> turns, episodes = torch.tensor([[1, 1, 2], [3, 0, 0]]), torch.tensor([5, 5])
        >>> aggregated("turn", values, mask, turns, episodes)
        (tensor(14.), tensor(3.))
        >>> aggregated("episode", values, mask, turns, episodes)
        (tensor(4.), tensor(1.))
    """
    if aggregation == "token":
        return token_sum(values, mask)
    by_turn = aggregation == "turn" and turn_ids is not None
    if aggregation == "sequence" or not mask.numel() or not (by_turn or episodes is not None):
        return sequence_mean_sum(values, mask)
    return group_mean_sum(values, mask, group_numbers(mask, turn_ids if by_turn else None, episodes))


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


def group_mean_sum(values: Tensor, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the means over the tokens of each group, and count the groups that have any.

    Args:
        values: [B, S]; what stands on masked positions is ignored.
        mask: [B, S] bool.
        groups: [B, S] int64, not below 0, the group of each token.

    Returns:
        Two scalars.

    Example:
        >>> import torch
        >>> group_mean_sum(torch.tensor([[1.0, 3.0, 5.0]]), torch.ones(1, 3).bool(), torch.tensor([[0, 0, 4]]))
        (tensor(7.), tensor(2.))
    """
    places = groups.flatten()
    sizes = torch.bincount(places, mask.flatten().double())
    totals = values.new_zeros(len(sizes)).index_add(0, places, values.masked_fill(~mask, 0.0).flatten())
    return (totals / sizes.clamp_min(1).to(values.dtype)).sum(), (sizes > 0).sum().float()


def sums_by_turn(values: Tensor, mask: Tensor, turn_ids: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    """Sum values by the turn of their tokens, and count the tokens of each turn.

    Args:
        values: [B, S]; what stands on masked positions is ignored.
        mask: [B, S] bool.
        turn_ids: [B, S] int64, k >= 1 on tokens of the k-th turn; None where each row is one turn.
        most: turns that are told; tokens of later ones are left out.

    Returns:
        [most] and [most] of the dtype of `values`; 0 and 0 for a turn without tokens.

    Example:
        >>> import torch
        >>> values, turns = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1, 1, 3, 9]])
        >>> sums_by_turn(values, values > 1, turns, most=3)
        (tensor([2., 0., 4.]), tensor([1., 0., 1.]))
    """
    turns = torch.ones_like(mask, dtype=torch.int64) if turn_ids is None else turn_ids
    places = turns.clamp_max(most + 1).masked_fill(~mask, 0).flatten()
    counted = (values.masked_fill(~mask, 0.0), mask.to(values.dtype))
    sums, counts = (values.new_zeros(most + 2).index_add_(0, places, of.flatten()) for of in counted)
    return sums[1:-1], counts[1:-1]


def group_numbers(mask: Tensor, turn_ids: Tensor | None, episodes: Tensor | None) -> Tensor:
    """Return a number for each token, [B, S] int64, equal on those that share episode and turn.

    With turns it is the number of the episode, from 0 on, times one more than the largest turn, plus the turn.

    Args:
        mask: [B, S] bool.
        turn_ids: [B, S] int64; None where each row is one turn.
        episodes: [B] int64, equal on rows of one episode; None where each row is one.

    Example:
        >>> import torch
        >>> group_numbers(torch.ones(2, 2).bool(), torch.tensor([[1, 2], [3, 3]]), torch.tensor([5, 5]))
        tensor([[1, 2],
                [3, 3]])
    """
    rows = torch.arange(len(mask), device=mask.device)
    whole = rows if episodes is None else torch.unique(episodes, return_inverse=True)[1]
    if turn_ids is None:
        return whole[:, None].expand_as(mask)
    return whole[:, None] * (turn_ids.amax() + 1) + turn_ids
