"""Axes that are not evenly spaced: probabilities by their log-odds, and positive numbers by their logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from veto_pl.report.axis import Axis

_PROBABILITIES = {
    1e-6: "1e-6", 1e-4: "1e-4", 0.01: "0.01", 0.1: "0.1", 0.5: "0.5", 0.9: "0.9", 0.99: "0.99",
    1 - 1e-6: "1\N{MINUS SIGN}1e-6",
}  # fmt: skip


@dataclass(frozen=True)
class LogitAxis(Axis):
    """Probabilities, spaced by their log-odds, so that both ends have room. `low` and `high` are log-odds."""

    @classmethod
    def around(cls, values: Sequence[float]) -> LogitAxis:
        """From the least to the greatest; all lie between 0 and 1."""
        return cls(log_odds(min(values)), log_odds(max(values)), 1.0)

    def ticks(self) -> list[float]:
        """The probabilities that have a label and lie in the range."""
        return [p for p in _PROBABILITIES if self.low - 1e-9 <= log_odds(p) <= self.high + 1e-9]

    def labels(self) -> list[str]:
        """Short forms, counted from 1 near it."""
        return [_PROBABILITIES[tick] for tick in self.ticks()]

    def at(self, value: float, start: float, end: float) -> float:
        """Where the probability lies."""
        return super().at(log_odds(value), start, end)


@dataclass(frozen=True)
class LogAxis(Axis):
    """Positive numbers by their decimal logarithm. `low` and `high` are logarithms."""

    @classmethod
    def around(cls, values: Sequence[float]) -> LogAxis:
        """Whole powers of ten around the values."""
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(low, max(high, low + 1), max(1.0, math.ceil((high - low) / 6)))

    def ticks(self) -> list[float]:
        """Powers of ten."""
        return [10.0**tick for tick in super().ticks()]

    def labels(self) -> list[str]:
        """As powers below 0.01 and above 1000."""
        return [f"{tick:g}" if 0.01 <= tick <= 1000 else f"1e{round(math.log10(tick))}" for tick in self.ticks()]

    def at(self, value: float, start: float, end: float) -> float:
        """Where the number lies."""
        return super().at(math.log10(value), start, end)


def log_odds(probability: float) -> float:
    """Of a probability between 0 and 1."""
    return math.log(probability) - math.log1p(-probability)
