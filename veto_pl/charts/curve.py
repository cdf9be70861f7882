"""A logged quantity over the steps of a run, and what several runs of one method say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from veto_pl.exceptions import DataError

Numbers = NDArray[np.float64]
# Larger numbers overflow when axes subtract them; no logged quantity means anything there.
_LARGEST = 1e100


def drawable(value: float) -> bool:
    """Return whether a value has a place on an axis: NaN, infinities and numbers beyond 1e100 have none."""
    return abs(value) < _LARGEST


@dataclass(frozen=True)
class Curve:
    """Values of one quantity; NaN and infinite values are kept and drawn as gaps.

    Args:
        steps: optimizer steps, or whatever the horizontal axis counts, strictly increasing.
        values: one value per step.

    Raises:
        DataError: if the lengths differ or the steps do not increase.
    """

    steps: tuple[float, ...] = ()
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

    def scaled(self, factor: float) -> Curve:
        """Return the same curve in another unit."""
        return self if factor == 1 else replace(self, values=tuple(v * factor for v in self.values))

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it can be drawn."""
        return not any(drawable(value) for value in self.values)

    @property
    def is_constant(self) -> bool:
        """Whether all that can be drawn is one value, more than once: a single value may be a result."""
        found = [value for value in self.values if drawable(value)]
        return len(found) > 1 and len(set(found)) == 1

    def on(self, steps: Numbers) -> Numbers:
        """Return the values at other steps: straight lines between the neighbours, NaN outside and beside gaps."""
        values = np.array([v if drawable(v) else math.nan for v in self.values])
        return np.asarray(np.interp(steps, np.array(self.steps, dtype=np.float64), values, math.nan, math.nan))


@dataclass(frozen=True)
class Envelope:
    """Curves of several seeds, summarised on common steps. All arrays have one number per step.

    Args:
        steps: those that all seeds reached; the middle of each stretch where there are more than are drawn.
        mean: over the seeds; NaN where one of them has no finite value.
        low: the least value of any seed.
        high: the greatest value of any seed.
    """

    steps: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers

    @classmethod
    def of(cls, curves: Sequence[Curve], limit: int = 120) -> Envelope:
        """Summarise curves at up to `limit` steps: the mean of each stretch of steps, and its extremes.

        A seed that logged at other steps is interpolated. Where seeds have no steps in common, all steps are kept.
        """
        curves = [curve for curve in curves if len(curve)]
        if not curves:
            return cls(*(np.zeros(0) for _ in range(4)))
        steps = np.unique([step for curve in curves for step in curve.steps]).astype(np.float64)
        start, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
        shared = steps[(steps >= start) & (steps <= end)]
        steps = shared if len(shared) else steps
        values = np.stack([curve.on(steps) for curve in curves])
        starts = np.linspace(0, len(steps), min(limit, len(steps)) + 1).astype(int)
        finite, starts = np.isfinite(values), starts[:-1]
        with np.errstate(invalid="ignore"):
            sums = np.add.reduceat(np.where(finite, values, 0.0), starts, axis=1)
            means = sums / np.add.reduceat(finite, starts, axis=1, dtype=np.float64)
        return cls(
            steps[(starts + np.append(starts[1:], len(steps))) // 2],
            means.mean(axis=0),
            np.fmin.reduce(np.fmin.reduceat(values, starts, axis=1)),
            np.fmax.reduce(np.fmax.reduceat(values, starts, axis=1)),
        )
