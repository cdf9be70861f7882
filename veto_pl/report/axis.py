"""Axes: ranges that fit the data, ticks at round numbers, labels that tell the ticks apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from veto_pl.report.markup import minus

# Below this relative spread a range counts as constant: its labels would be all digits.
_FLAT = 1e-6


@dataclass(frozen=True)
class Axis:
    """A range with ticks.

    Args:
        low: value at the start.
        high: value at the end, above `low`.
        spacing: distance between ticks: 1, 2 or 5 times a power of ten.
    """

    low: float
    high: float
    spacing: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """The axis of real values: 5% of room on either side, but not across zero; a constant but 0 sits mid-way."""
        low, high = min(values), max(values)
        size = max(abs(low), abs(high))
        room = 0.05 * (high - low)
        if high - low <= max(_FLAT * size, 1e-100):
            room = 0.1 * size if size > 1e-90 else 1.0
        start = max(low - room, 0.0) if low >= 0 else low - room
        end = min(high + room, 0.0) if high <= 0 and low < 0 else high + room
        return cls(start, end, round_spacing(end - start))

    @classmethod
    def of_steps(cls, steps: Sequence[int]) -> Axis:
        """The axis of whole numbers from the first to the last of them; one step sits mid-way."""
        low, high = float(min(steps)), float(max(steps))
        if low == high:
            low, high = low - 1, high + 1
        return cls(low, high, max(1.0, round_spacing(high - low)))

    def ticks(self) -> list[float]:
        """The multiples of `spacing` within the range.

        >>> Axis(0.0, 1.0, 0.5).ticks()
        [0.0, 0.5, 1.0]
        """
        first = math.ceil(self.low / self.spacing - 1e-9)
        last = math.floor(self.high / self.spacing + 1e-9)
        return [index * self.spacing for index in range(first, last + 1)]

    def labels(self) -> list[str]:
        """The ticks as text with as many digits as `spacing` has, in powers of ten below 1e-3 and from 1e6 on.

        >>> Axis(0.0, 2e-5, 1e-5).labels(), Axis(0.0, 2000.0, 1000.0).labels()
        (['0', '1e-5', '2e-5'], ['0', '1,000', '2,000'])
        """
        ticks = self.ticks()
        largest = max((abs(tick) for tick in ticks), default=0.0)
        finest = math.floor(math.log10(self.spacing) + 1e-9)
        if 1e-3 <= largest < 1e6:
            return [minus(f"{tick:,.{max(0, -finest)}f}") for tick in ticks]
        digits = math.floor(math.log10(largest)) - finest if largest else 0
        return [minus(_scientific(tick, max(0, digits))) for tick in ticks]

    def at(self, value: float, start: float, end: float) -> float:
        """Where `value` lies when the axis runs from `start` to `end`."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)


@dataclass(frozen=True)
class LogAxis(Axis):
    """An axis of base-10 logarithms whose ticks are labelled with the numbers themselves."""

    @classmethod
    def around(cls, values: Sequence[float]) -> LogAxis:
        """The axis of real logarithms with 5% of room on either side, at least a fifth of a decade wide."""
        low, high = min(values), max(values)
        room = max(0.05 * (high - low), (0.2 - (high - low)) / 2)
        return cls(low - room, high + room, float(max(1, math.ceil((high - low) / 6))))

    def ticks(self) -> list[float]:
        """Powers of ten, with 2 and 5 times them below three decades; steps of `Axis` within one digit."""
        span = self.high - self.low
        digits = (1, 2, 5) if span < 3 else (1,)
        powers = range(math.floor(self.low) // int(self.spacing) * int(self.spacing), math.ceil(self.high) + 1)
        found = [power + math.log10(d) for power in powers[:: int(self.spacing)] for d in digits]
        inside = [tick for tick in found if self.low <= tick <= self.high]
        return inside if len(inside) > 1 else [math.log10(value) for value in self._plain().ticks() if value > 0]

    def labels(self) -> list[str]:
        """The numbers at the ticks.

        >>> LogAxis(-2.0, 2.0, 1.0).labels(), LogAxis(0.0, 1.0, 1.0).labels()
        (['0.01', '0.1', '1', '10', '100'], ['1', '2', '5', '10'])
        """
        return [_short(10**tick) for tick in self.ticks()]

    def _plain(self) -> Axis:
        low, high = 10**self.low, 10**self.high
        return Axis(low, high, round_spacing(high - low))


def round_spacing(span: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that cuts `span` into at most six parts.

    >>> round_spacing(1.0), round_spacing(7.0), round_spacing(400.0)
    (0.2, 2.0, 100.0)
    """
    power = math.floor(math.log10(span / 6))
    candidates = [float(f"{digit}e{power + extra}") for extra in (0, 1) for digit in (1, 2, 5)]
    return next(spacing for spacing in candidates if spacing * 6 >= span * (1 - 1e-9))


def _short(value: float) -> str:
    """A round number with the digits that it has."""
    if 1e-4 <= value < 1e6:
        return f"{float(f'{value:.6g}'):,.10g}"
    return _scientific(value, 5)


def _scientific(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"
