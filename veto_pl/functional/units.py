r"""Units: the smallest pieces of a text that two tokenizers both end a token at.

A text has boundaries where a token of the student ends, and others where one of the teacher does. A unit is what lies
between two neighbouring boundaries that both have. It holds at least one whole token of each, and cannot be divided
without cutting one. Shapes: `N` tokens of the student, `Nt` of the teacher, `U` units, `K` shared ids, `Vs` and `Vt`
ids of student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """Which tokens of a student and of a teacher stand for the same bytes.

    Args:
        student: [N] int64, the unit of each token of the student, ascending; -1 where it has none.
        teacher: [Nt] int64, the same of the teacher's tokens.
        count: U, the number of units; each has at least one token on both sides.
        shared: [K] and [K] int64, the ids of student and teacher that stand for the same bytes, each at most once.

    Example:
        The student writes `4`, `2`, `x`, and the teacher `42`, `x`:

        >>> units = minimal_units(torch.tensor([1, 1, 1]), torch.tensor([2, 1]))
        >>> units.student, units.teacher, units.count
        (tensor([0, 0, 1]), tensor([0, 1]), 2)
    """

    student: Tensor
    teacher: Tensor
    count: int
    shared: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.empty(0, dtype=torch.int64),) * 2)

    @cached_property
    def sizes(self) -> tuple[Tensor, Tensor]:
        """[U] and [U] int64: the tokens of each unit, of the student and of the teacher."""
        mine, theirs = (torch.bincount(side + 1, minlength=self.count + 1) for side in (self.student, self.teacher))
        return mine[1:], theirs[1:]

    @cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """[U] and [U] int64: the first token of each unit, of the student and of the teacher."""
        return _first(self.student), _first(self.teacher)

    @cached_property
    def others(self) -> Tensor:
        """[N - U] int64: the tokens of the student that are the first of no unit."""
        apart = torch.ones_like(self.student, dtype=torch.bool)
        apart[self.first[0]] = False
        return apart.nonzero()[:, 0]

    @property
    def single(self) -> Tensor:
        """[U] bool: the units that are one token on both sides."""
        mine, theirs = self.sizes
        return (mine == 1) & (theirs == 1)

    def only(self, kept: Tensor) -> Units:
        """Return some of the units, numbered anew; the tokens of the others have none.

        Args:
            kept: [U] bool.

        Example:
            >>> units = minimal_units(torch.tensor([1, 1, 1]), torch.tensor([2, 1]))
            >>> units.only(units.single).student
            tensor([-1, -1,  0])
        """
        number = torch.cat([kept.new_zeros(1), kept])  # first comes what the tokens without a unit have
        new = torch.where(number, number.cumsum(0) - 1, -1)
        return Units(new[self.student + 1], new[self.teacher + 1], int(kept.sum()), self.shared)

    def without(self, tokens: Tensor) -> Units:
        """Return the units that hold none of some tokens of the student.

        Args:
            tokens: [N] bool.

        Example:
            >>> units = minimal_units(torch.tensor([1, 1, 1]), torch.tensor([2, 1]))
            >>> units.without(torch.tensor([True, False, False])).student
            tensor([-1, -1,  0])
        """
        kept = torch.ones(self.count, dtype=torch.bool)
        kept[self.student[tokens & (self.student >= 0)]] = False
        return self.only(kept)

    def among(self, places: Tensor, tokens: int) -> Units:
        """Return the same units of a longer text of the student's, of which these are some tokens.

        Args:
            places: [N] int64, ascending, where they are.
            tokens: of the longer text.

        Example:
            >>> units = minimal_units(torch.tensor([1, 1]), torch.tensor([2]))
            >>> units.among(torch.tensor([0, 2]), 3).student
            tensor([ 0, -1,  0])
        """
        longer = self.student.new_full((tokens,), -1)
        longer[places] = self.student
        return Units(longer, self.teacher, self.count, self.shared)

    def to(self, device: torch.device | str) -> Units:
        """Return the same units on a device; what takes a wait to find there is found here."""

        def sent(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0].to(device), pair[1].to(device)

        there = Units(*sent((self.student, self.teacher)), self.count, sent(self.shared))
        vars(there).update(sizes=sent(self.sizes), first=sent(self.first), others=self.others.to(device))
        return there


def minimal_units(student_lengths: Tensor, teacher_lengths: Tensor, limit: int | None = None) -> Units:
    r"""Find the units of a text that two tokenizers have cut into tokens.

    .. math:: \mathcal{B} = \Big\{ \sum_{i \le k} \ell^S_i \Big\}_k \cap \Big\{ \sum_{j \le k} \ell^T_j \Big\}_k

    Token i is of the unit whose number is the count of common boundaries in front of its end.

    Args:
        student_lengths: [N] int64, the bytes of each token of the student.
        teacher_lengths: [Nt] int64, the bytes of each token of the teacher.
        limit: bytes from the beginning on that are the same in both; None where all are. No unit reaches further.

    Returns:
        The units; tokens behind the last common boundary have none. A token without bytes belongs to the unit in front
        of it, or to the first.

    Example:
        >>> minimal_units(torch.tensor([2, 3]), torch.tensor([1, 1, 4])).teacher
        tensor([ 0,  0, -1])

    References:
        SimCT, arXiv 2605.07711, section on minimal aligned units.
    """
    mine, theirs = student_lengths.cumsum(0), teacher_lengths.cumsum(0)
    common = mine[torch.isin(mine, theirs)]
    common = common[common > torch.cat([common.new_zeros(1), common[:-1]])]  # each once, though tokens may be empty
    common = common if limit is None else common[common <= limit]

    def units_of(ends: Tensor) -> Tensor:
        place = torch.searchsorted(common, ends)
        return place.masked_fill(place == len(common), -1)

    return Units(units_of(mine), units_of(theirs), len(common))


def joined_units(parts: Sequence[Units]) -> Units:
    """Return the units of several texts, one behind the other; no text has no units.

    Example:
        >>> one = minimal_units(torch.tensor([1, 2]), torch.tensor([3]))
        >>> joined_units([one, one]).student
        tensor([0, 0, 1, 1])
    """
    if not parts:
        return minimal_units(*(torch.empty(0, dtype=torch.int64),) * 2)
    before = torch.tensor([0, *(part.count for part in parts)]).cumsum(0).tolist()
    sides = [
        [torch.where(side >= 0, side + start, -1) for side, start in zip(of, before[:-1], strict=True)]
        for of in ([part.student for part in parts], [part.teacher for part in parts])
    ]
    return Units(torch.cat(sides[0]), torch.cat(sides[1]), before[-1], parts[0].shared)


def unit_sums(values: Tensor, units: Tensor, count: int) -> Tensor:
    """Sum over the tokens of each unit.

    Args:
        values: [n]; what a token without a unit has is ignored.
        units: [n] int64, the unit of each token, -1 for none.
        count: U.

    Returns:
        [U], in the graph of `values`.

    Example:
        >>> unit_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, -1, 1]), 2)
        tensor([3., 8.])
    """
    return values.new_zeros(count + 1).index_add(0, units + 1, values)[1:]


def spread_logp(student_logp: Tensor, teacher_logp: Tensor, units: Units) -> Tensor:
    r"""Spread the teacher's log-probability of each unit evenly over the student's tokens, for policy gradients.

    .. math:: \tilde L_T(t) = \log p_S(y_t) + \frac{L_T(u) - L_S(u)}{m_u}, \qquad t \in u

    with the sums :math:`L` of the log-probabilities of the unit's tokens, and the number :math:`m_u` of those of the
    student. The log-ratios of a unit's tokens then add up to that of the unit. Where all units are one token, it is the
    teacher's own log-probability.

    Args:
        student_logp: [N] log-probabilities of the student's tokens.
        teacher_logp: [Nt] log-probabilities of the teacher's tokens.
        units: `units.only(units.single)` gives credit to units of one token on both sides alone, as SimpleOPD.

    Returns:
        [N], without graph; the student's own log-probability where a token has no unit, so that its log-ratio is 0.

    Example:
        >>> units = minimal_units(torch.tensor([1, 1]), torch.tensor([2]))
        >>> spread_logp(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0]), units)
        tensor([-0.5000, -1.5000])

    References:
        arXiv 2606.09456 (the projection); SimpleOPD, arXiv 2608.14277 (units of one token).
    """
    mine, theirs = student_logp.detach(), teacher_logp.detach()
    gap = unit_sums(theirs, units.teacher, units.count) - unit_sums(mine, units.student, units.count)
    share = torch.cat([gap.new_zeros(1), gap / units.sizes[0]])
    return mine + share[units.student + 1]


def _first(side: Tensor) -> Tensor:
    """Return where the number of the unit is higher than all in front of it, [U]."""
    highest = torch.cat([side.new_full((1,), -1), side]).cummax(0).values[:-1]
    return (side > highest).nonzero()[:, 0]
