"""Completions of one prompt, some correct and some wrong: which count, and how far apart their credit is.

[B] numbers, one per completion; `groups` [B] int64 names the prompt of each. Every comparison stays within a group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mode = Literal["mean", "minmax"]
Direction = Literal["both", "correct_up", "incorrect_down"]

SHARES = {"both": (0.5, 0.5), "correct_up": (1.0, 0.0), "incorrect_down": (0.0, 1.0)}
"""Shares of a missing margin, by direction: what correct completions gain, and what wrong ones lose."""


def group_mean(values: Tensor, groups: Tensor, among: Tensor) -> Tensor:
    """Return the mean over the rows of the same group that are `among` those that count; 0 where there are none.

    Args:
        values: [B].
        groups: [B] int64.
        among: [B] bool.

    Returns:
        [B], the same for all rows of a group.

    Example:
        >>> group_mean(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1]), torch.tensor([True, True, True]))
        tensor([2., 2., 8.])
    """
    members = (groups[:, None] == groups) & among
    return torch.where(members, values, 0.0).sum(1) / members.sum(1).clamp_min(1)


def first_of_group(groups: Tensor, among: Tensor) -> Tensor:
    """Return for each row the first row of its group that is `among` those that count; itself where there is none.

    Args:
        groups: [B] int64.
        among: [B] bool.

    Returns:
        [B] int64.

    Example:
        >>> first_of_group(torch.tensor([4, 4, 7]), torch.tensor([False, True, False]))
        tensor([1, 1, 2])
    """
    rows = torch.arange(len(groups), device=groups.device)
    members = (groups[:, None] == groups) & among
    first = torch.where(members, rows, len(rows)).amin(1) if len(rows) else rows
    return torch.where(first < len(rows), first, rows)


def group_standardised(values: Tensor, groups: Tensor, among: Tensor) -> Tensor:
    """Compute how many standard deviations a row is above the mean of its group.

    Args:
        values: [B].
        groups: [B] int64.
        among: [B] bool, the rows that the mean and the (biased) standard deviation are taken over.

    Returns:
        [B]; 0 where the values of a group are all alike.

    Example:
        >>> group_standardised(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool))
        tensor([-1.,  1.,  0.])

    References:
        arXiv 2402.03300
    """
    members = (groups[:, None] == groups) & among
    differ = (members & (values[:, None] != values)).any(1)  # rounding leaves equal values a deviation that is not 0
    centred = values - group_mean(values, groups, among)
    deviation = group_mean(centred.square(), groups, among).sqrt()
    return torch.where(differ, centred / deviation.clamp_min(torch.finfo(values.dtype).tiny), 0.0)


def group_advantage(values: Tensor, groups: Tensor, among: Tensor, epsilon: float = 1e-6) -> Tensor:
    r"""Compute the credit of GRPO, :math:`(r - \bar r) / (\sigma + \epsilon)` with the unbiased standard deviation.

    Args:
        values: [B], r.
        groups: [B] int64.
        among: [B] bool, the rows that the mean and the deviation are taken over.
        epsilon: added to the deviation.

    Returns:
        [B]; 0 in a group of a single row.

    Example:
        >>> group_advantage(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool))
        tensor([-0.7071,  0.7071,  0.0000])

    References:
        arXiv 2402.03300
    """
    members = (groups[:, None] == groups) & among
    centred = values - group_mean(values, groups, among)
    squares = torch.where(members, centred.square(), 0.0).sum(1)
    count = members.sum(1)
    deviation = (squares / (count - 1).clamp_min(1)).sqrt()
    return torch.where(count > 1, centred / (deviation + epsilon), 0.0)


def group_gap(scores: Tensor, correct: Tensor, groups: Tensor, counted: Tensor, mode: Mode = "mean") -> Tensor:
    r"""Compute how far the correct completions of a group are above its wrong ones.

    .. math:: \mathrm{mean}_{correct}\, a - \mathrm{mean}_{wrong}\, a \quad\text{or}\quad
        \min\nolimits_{correct} a - \max\nolimits_{wrong} a

    Args:
        scores: [B], a.
        correct: [B] bool.
        groups: [B] int64.
        counted: [B] bool, False for rows that do not take part.
        mode: `mean` or `minmax`.

    Returns:
        [B], the same for all rows of a group; infinite where a group lacks one class.

    Example:
        >>> a, right = torch.tensor([1.0, 3.0, 2.5]), torch.tensor([True, True, False])
        >>> one, all_ = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
        >>> group_gap(a, right, one, all_), group_gap(a, right, one, all_, "minmax")
        (tensor([-0.5000, -0.5000, -0.5000]), tensor([-1.5000, -1.5000, -1.5000]))
    """
    classes = (correct & counted, ~correct & counted)
    same = groups[:, None] == groups
    present = (same & classes[0]).any(1) & (same & classes[1]).any(1)
    if mode == "mean":
        right, wrong = (group_mean(scores, groups, part) for part in classes)
    else:
        right = torch.where(same & classes[0], scores, torch.inf).amin(1)
        wrong = torch.where(same & classes[1], scores, -torch.inf).amax(1)
    return torch.where(present, right - wrong, torch.inf)


def margin_shift(gap: Tensor, correct: Tensor, margin: float, direction: Direction = "both") -> Tensor:
    r"""Compute what has to be added to each completion's score so that the gap of its group reaches the margin.

    .. math:: s = \max(0, \delta - \mathrm{gap}), \qquad +s/2 \text{ for a correct completion},\ -s/2 \text{ for a wrong
        one}

    Args:
        gap: [B] as `group_gap` gives it; infinite where nothing is to be moved.
        correct: [B] bool.
        margin: delta.
        direction: who is moved; one class alone is moved by all of s.

    Returns:
        [B].

    Example:
        >>> margin_shift(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([True, False, True]), 0.4)
        tensor([ 0.2000, -0.2000,  0.0000])

    References:
        arXiv 2605.03677
    """
    up, down = SHARES[direction]
    missing = (margin - gap).clamp_min(0.0)
    return torch.where(correct, up * missing, -down * missing)


def margin_mask(
    scores: Tensor, correct: Tensor, groups: Tensor, counted: Tensor, margin: float, min_retain: float, mode: Mode
) -> Tensor:
    """Leave out completions until the gap of their group reaches the margin.

    In each step either the worst correct completion or the best wrong one goes, whichever widens the gap more, and of
    either class max(1, floor(min_retain x its size)) completions stay.

    Args:
        scores: [B].
        correct: [B] bool.
        groups: [B] int64.
        counted: [B] bool, False for rows that do not take part; they are kept.
        margin: the gap that is wanted.
        min_retain: the share of each class that stays, in [0, 1].
        mode: as in `group_gap`.

    Returns:
        [B] bool, True for what is kept. The host waits for the scores.

    Example:
        >>> a, right = torch.tensor([0.0, 2.0, 1.5]), torch.tensor([True, True, False])
        >>> one, all_ = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
        >>> margin_mask(a, right, one, all_, 0.4, 0.25, "mean")
        tensor([False,  True,  True])

    References:
        arXiv 2605.03677
    """
    values, names, flags = scores.tolist(), groups.tolist(), correct.tolist()
    taking_part = [row for row, counts in enumerate(counted.tolist()) if counts]
    kept = torch.ones_like(correct)
    for name in dict.fromkeys(names):
        rows = sorted((row for row in taking_part if names[row] == name), key=values.__getitem__)
        right, wrong = [row for row in rows if flags[row]], [row for row in reversed(rows) if not flags[row]]
        kept[_dropped(values, right, wrong, margin, min_retain, mode)] = False
    return kept


def _dropped(
    values: list[float], right: list[int], wrong: list[int], margin: float, min_retain: float, mode: Mode
) -> list[int]:
    """Return the rows of one group that go.

    `right` ascends and `wrong` descends in the score, so the first of either is the next to go.
    """

    def gap(right: list[int], wrong: list[int]) -> float:
        if not right or not wrong:
            return torch.inf
        if mode == "minmax":
            return values[right[0]] - values[wrong[0]]
        return sum(values[i] for i in right) / len(right) - sum(values[i] for i in wrong) / len(wrong)

    fewest = [max(1, int(len(rows) * min_retain)) for rows in (right, wrong)]
    dropped = []
    while (present := gap(right, wrong)) < margin:
        without_right = gap(right[1:], wrong) if len(right) > fewest[0] else present
        without_wrong = gap(right, wrong[1:]) if len(wrong) > fewest[1] else present
        if max(without_right, without_wrong) <= present:
            break
        dropped.append((right if without_right >= without_wrong else wrong).pop(0))
    return dropped


def balance_classes(
    correct: Tensor, groups: Tensor, priority: Tensor, ratio: float, counted: Tensor | None = None
) -> Tensor:
    r"""Leave out the surplus of a class, so that a group has `ratio` correct completions for each wrong one.

    .. math:: n_{correct} \le \lfloor r\, n_{wrong} \rfloor, \qquad n_{wrong} \le \lfloor n_{correct} / r \rfloor

    Args:
        correct: [B] bool.
        groups: [B] int64.
        priority: [B] distinct numbers; of a class, those with the smallest stay.
        ratio: r, at least 0; 0 keeps wrong completions only.
        counted: [B] bool, the rows that are counted and chosen from; what is said of others means nothing; None: all.

    Returns:
        [B] bool, True for what is kept. A group that lacks a class, or would lose one, is left alone, unless r is 0.

    Example:
        >>> right, one = torch.tensor([True, True, True, False]), torch.zeros(4, dtype=torch.int64)
        >>> balance_classes(right, one, torch.tensor([0.3, 0.1, 0.2, 0.9]), 1.0)
        tensor([False,  True, False,  True])

    References:
        arXiv 2605.03677
    """
    if ratio == 0:
        return ~correct
    same = groups[:, None] == groups
    same = same if counted is None else same & counted
    right, wrong = (same & correct).sum(1).double(), (same & ~correct).sum(1).double()
    own, wanted = torch.where(correct, right, wrong), torch.where(correct, wrong * ratio, right / ratio)
    wanted = (wanted + 1e-6).floor()  # 9 / 0.6 is a little below 15
    place = (same & (correct[:, None] == correct) & (priority < priority[:, None])).sum(1)
    return (own <= wanted) | (wanted < 1) | (place < wanted)
