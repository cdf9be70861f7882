"""A logged quantity over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from veto_pl.exceptions import DataError

# Larger numbers overflow when axes subtract them; no logged quantity means anything there.
_LARGEST = 1e150


def drawable(value: float) -> bool:
    """Whether a value has a place on an axis: NaN, infinities and numbers beyond 1e150 have none."""
    return abs(value) < _LARGEST


@dataclass(frozen=True)
class Curve:
    """Values of one quantity; NaN and infinite values are kept and drawn as gaps.

    Args:
        steps: optimizer steps, strictly increasing.
        values: one value per step.

    Raises:
        DataError: if the lengths differ or the steps do not increase.
    """

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise DataError(
                f"`Curve` needs one value per step, got {len(self.steps)} steps and {len(self.values)} values."
            )
        if any(a >= b for a, b in pairwise(self.steps)):
            raise DataError("`Curve.steps` must increase strictly; sort them and keep one value per step.")

    def __len__(self) -> int:
        return len(self.steps)

    def points(self) -> list[tuple[int, float]]:
        """The points that can be drawn, in order."""
        return [(s, v) for s, v in zip(self.steps, self.values, strict=True) if drawable(v)]

    def scaled(self, factor: float) -> Curve:
        """The same curve in another unit."""
        return self if factor == 1 else replace(self, values=tuple(v * factor for v in self.values))

    def segments(self) -> Iterator[list[tuple[int, float]]]:
        """The drawable points, cut at each gap."""
        segment: list[tuple[int, float]] = []
        for step, value in zip(self.steps, self.values, strict=True):
            if drawable(value):
                segment.append((step, value))
            elif segment:
                yield segment
                segment = []
        if segment:
            yield segment

    @property
    def is_noisy(self) -> bool:
        """Whether more than 60 points turn around more often than at every fourth point; schedules do not."""
        values = [v for _, v in self.points()]
        moves = [b - a for a, b in pairwise(values)]
        turns = sum(a * b < 0 for a, b in pairwise(moves))
        return len(values) > 60 and turns > len(values) / 4

    def smoothed(self) -> Curve:
        r"""The moving least-squares line: :math:`\hat x_i = \arg\min_a \min_b \sum_j (x_j - a - b (j - i))^2`.

        The window reaches a fiftieth of the points (2 at least) to either side, as far as there are points: away from
        the ends this is the moving mean, and straight lines are kept everywhere. Gaps stay gaps and are left out.
        """
        reach = max(2, len(self) // 50)
        values = list(self.values)
        for i, value in enumerate(self.values):
            if drawable(value):
                near = range(max(0, i - reach), min(len(self), i + reach + 1))
                values[i] = _line_at_zero([(j - i, self.values[j]) for j in near if drawable(self.values[j])])
        return replace(self, values=tuple(values))

    def pooled(self, limit: int = 800) -> Curve:
        """At most `limit` points: the mean of each stretch, at its middle step; only stretches of gaps stay gaps."""
        width = math.ceil(len(self) / limit)
        if width <= 1:
            return self
        starts = range(0, len(self), width)
        steps = [self.steps[start : start + width] for start in starts]
        finite = [[v for v in self.values[start : start + width] if drawable(v)] for start in starts]
        means = (math.fsum(values) / len(values) if values else math.nan for values in finite)
        return Curve(tuple(stretch[len(stretch) // 2] for stretch in steps), tuple(means))

    def thinned(self, limit: int = 400) -> Curve:
        """At most about `limit` points that keep the ends, the gaps and the extremes of each stretch."""
        if len(self) <= limit:
            return self
        width = math.ceil(2 * len(self) / limit)
        kept = {0, len(self) - 1}
        for start in range(0, len(self), width):
            stretch = range(start, min(start + width, len(self)))
            finite = [i for i in stretch if drawable(self.values[i])]
            if finite:
                kept.add(min(finite, key=self.values.__getitem__))
                kept.add(max(finite, key=self.values.__getitem__))
            if len(finite) < len(stretch):
                kept.add(next(i for i in stretch if not drawable(self.values[i])))
        order = sorted(kept)
        return Curve(tuple(self.steps[i] for i in order), tuple(self.values[i] for i in order))


def _line_at_zero(points: list[tuple[int, float]]) -> float:
    """The height at 0 of the least-squares line through points (x, y)."""
    count = len(points)
    centre = sum(x for x, _ in points) / count
    mean = math.fsum(y for _, y in points) / count
    spread = sum((x - centre) ** 2 for x, _ in points)
    slope = math.fsum((x - centre) * (y - mean) for x, y in points) / (spread or 1)
    return mean - slope * centre
