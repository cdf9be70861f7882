"""What several runs of one method say together: their mean over the steps, and how far they lie apart."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from veto_pl.report.curve import Curve, drawable


@dataclass(frozen=True)
class Envelope:
    """Curves of several seeds, summarised on common steps.

    Args:
        mean: over the seeds; a gap where one of them has no finite value.
        low: the least value of any seed.
        high: the greatest value of any seed.
        seeds: number of curves.
    """

    mean: Curve = Curve()
    low: Curve = Curve()
    high: Curve = Curve()
    seeds: int = 0

    @classmethod
    def of(cls, curves: Sequence[Curve], limit: int = 120) -> Envelope:
        """The envelope at up to `limit` steps.

        More steps are taken in equal stretches: the mean of each, and its extremes. A seed that logged at other steps
        is interpolated. The envelope spans the steps that all seeds reached.
        """
        curves = [curve for curve in curves if len(curve)]
        if not curves:
            return cls()
        steps = _common(curves)
        width = math.ceil(len(steps) / limit)
        stretches = [steps[i : i + width] for i in range(0, len(steps), width)]
        edges = [(stretch[0], stretch[-1]) for stretch in stretches]
        middles = tuple(stretch[len(stretch) // 2] for stretch in stretches)
        means, lows, highs = (
            [_at(curve, edges, middles, take) for curve in curves] for take in (_mean, min, max)
        )  # one list of values per seed each
        return cls(
            Curve(middles, tuple(math.fsum(at) / len(curves) for at in zip(*means, strict=True))),
            Curve(middles, tuple(_finite(min, at) for at in zip(*lows, strict=True))),
            Curve(middles, tuple(_finite(max, at) for at in zip(*highs, strict=True))),
            len(curves),
        )

    @property
    def has_range(self) -> bool:
        """Whether the seeds, or the points of a stretch, differ anywhere."""
        return any(low < high for low, high in zip(self.low.values, self.high.values, strict=True))


def _common(curves: Sequence[Curve]) -> list[int]:
    """The steps of any curve that all curves reach; all steps where they have none in common."""
    steps = sorted({step for curve in curves for step in curve.steps})
    start, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    return [step for step in steps if start <= step <= end] or steps


def _at(
    curve: Curve,
    edges: Sequence[tuple[int, int]],
    middles: Sequence[int],
    take: Callable[[Sequence[float]], float],
) -> list[float]:
    """One value per stretch: taken from the points inside, else interpolated; NaN where they are not finite."""
    values = []
    for (start, end), middle in zip(edges, middles, strict=True):
        inside = curve.values[bisect_right(curve.steps, start - 1) : bisect_right(curve.steps, end)]
        values.append(_finite(take, inside) if inside else _between(curve, middle))
    return values


def _between(curve: Curve, step: int) -> float:
    """The straight line between the neighbours of a step; NaN outside."""
    right = bisect_right(curve.steps, step)
    if not 0 < right < len(curve):
        return math.nan
    (start, end), (low, high) = curve.steps[right - 1 : right + 1], curve.values[right - 1 : right + 1]
    if not (drawable(low) and drawable(high)):
        return math.nan
    return low + (high - low) * (step - start) / (end - start)


def _finite(take: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    finite = [value for value in values if drawable(value)]
    return take(finite) if finite else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
