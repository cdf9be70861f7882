"""Schedules for any scalar knob; the fraction of the run that is done is `step / total`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from veto_pl.core.bounds import Count, Finite, UnitInterval
from veto_pl.core.nested import walk
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional import schedules as functional
from veto_pl.seams import Schedule


def _check_finite(schedule: Schedule, **given: float | tuple[float, ...]) -> None:
    for name, value in given.items():
        if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            raise ConfigurationError(f"`{type(schedule).__name__}.{name}` must be finite, got {value}.")


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout.

    Args:
        value: the value.
    """

    value: Finite

    @classmethod
    def examples(cls) -> tuple["Constant", ...]:
        return (cls(0.3),)

    def __call__(self, step: int, total: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line over the whole run.

    Args:
        start: the value at the first step.
        end: the value after the last step.
    """

    start: Finite
    end: Finite = 0.0

    @classmethod
    def examples(cls) -> tuple["Linear", ...]:
        return cls(0.8, 0.0), cls(-1.0, 2.0)

    def __call__(self, step: int, total: int) -> float:
        return functional.linear(self.start, self.end, step / max(total, 1))


@dataclass(frozen=True)
class Staircase(Schedule):
    r"""A number that rises every few steps: :math:`a + b \lfloor n / \eta \rfloor` in step n, counted from 1.

    Args:
        start: a, the value before the first rise.
        every: eta, the steps between two rises.
        rise: b.

    Example:
        >>> [Staircase(1, 5)(step, 100) for step in (0, 4, 9)]
        [1.0, 2.0, 3.0]

    References:
        arXiv 2604.24005
    """

    start: Finite = 1
    every: Count = 2
    rise: Finite = 1

    def __call__(self, step: int, total: int) -> float:
        return float(self.start + self.rise * ((min(step, total) + 1) // self.every))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave over the whole run: slow at both ends.

    Args:
        start: the value at the first step.
        end: the value after the last step.
    """

    start: Finite
    end: Finite = 0.0

    @classmethod
    def examples(cls) -> tuple["Cosine", ...]:
        return (cls(0.8, 0.1),)

    def __call__(self, step: int, total: int) -> float:
        return functional.cosine(self.start, self.end, step / max(total, 1))


@dataclass(frozen=True)
class StepWise(Schedule):
    """Constant pieces.

    Args:
        values: the value of each piece.
        boundaries: the ascending fractions of the run, in (0, 1), at which the next piece begins; one fewer than
            `values`.
    """

    values: tuple[float, ...]
    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite(self, values=self.values)
        ascending = all(a < b for a, b in pairwise((0.0, *self.boundaries, 1.0)))
        if len(self.values) != len(self.boundaries) + 1 or not ascending:
            raise ConfigurationError(
                "`StepWise.boundaries` must ascend within (0, 1) and be one fewer than `values`, "
                f"got {self.boundaries} for {self.values}."
            )

    @classmethod
    def examples(cls) -> tuple["StepWise", ...]:
        return (cls((0.8, 0.4, 0.0), (0.5, 0.75)),)

    def __call__(self, step: int, total: int) -> float:
        return functional.piecewise_constant(self.values, self.boundaries, step / max(total, 1))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A linear rise from 0 to 1 that multiplies another schedule, as learning rates use it.

    Args:
        fraction: the part of the run that the rise takes, in [0, 1].
        then: the schedule that is multiplied; it runs over what is left.
    """

    fraction: UnitInterval = 0.1
    then: Schedule = Linear(1.0, 0.0)

    @classmethod
    def examples(cls) -> tuple["WarmUp", ...]:
        return cls(), cls(0.0), cls(1.0, Constant(2.0))

    def __call__(self, step: int, total: int) -> float:
        rise = round(self.fraction * total)
        if step < rise:
            return (step + 1) / (rise + 1) * self.then(0, total)
        return self.then(step - rise, total - rise)


@dataclass(frozen=True)
class AtMost(Schedule):
    """Another schedule, but never above a bound.

    Args:
        of: the other schedule.
        bound: the largest value.
    """

    of: Schedule
    bound: Finite

    @classmethod
    def examples(cls) -> tuple["AtMost", ...]:
        return (cls(Linear(0.8, 2.0), 1.2),)

    def __call__(self, step: int, total: int) -> float:
        return min(self.of(step, total), self.bound)


def value_at(knob: float | Schedule, step: int, total: int) -> float:
    """Return the number that a knob stands for at a step, a number or a schedule; a tensor in compiled kernels."""
    return knob(step, total) if isinstance(knob, Schedule) else 0.0 + knob  # a tensor stays one


def scheduled_values(configured: object, step: int, total: int) -> Iterator[tuple[str, float]]:
    """Yield the name and the present value of every schedule inside a part, at any depth.

    A schedule is named by its field. Inside of a mapping, the key is put in front, as in the metrics of a sum's terms:
    `kd/beta` for the beta of the term `kd`, and `weights/kd` for its weight.
    """
    # A schedule that another one is made of has no name of its own.
    for path, part in walk(configured, derived=True, closed=Schedule):
        if isinstance(part, Schedule):
            around = "".join(f"{place.key}/" for place in path[:-1] if place.key)
            yield f"{around}{path[-1].field}" + (f"/{path[-1].key}" if path[-1].key else ""), part(step, total)
