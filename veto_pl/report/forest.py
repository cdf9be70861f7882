"""Forest plots: one row per method with every seed, the mean and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from veto_pl.report.axis import Axis
from veto_pl.report.curve import drawable
from veto_pl.report.drawing import headline, of_mark, picture, rule, shortened, text_at, text_width
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape, printable
from veto_pl.report.table import number

_TOP, _ROW, _LEFT, _RIGHT, _FOOT = 46.0, 62.0, 8.0, 14.0, 26.0
_LANES, _SIZE = (0.0, -6.0, 6.0), 7.0  # where the seeds of about one value go, and how wide they are


@dataclass(frozen=True)
class Row:
    """A row of a forest plot.

    Args:
        name: of the method.
        mark: its look.
        seeds: seed -> value; what has no place on an axis is left out.
        mean: over the seeds.
        low: of the mean's interval; NaN where there is none.
        high: of the mean's interval.
        reading: the values as text, written at the end of the row.
        stressed: whether the reading is set in bold.
    """

    name: str
    mark: Mark
    seeds: Mapping[int, float]
    mean: float
    low: float
    high: float
    reading: str
    stressed: bool = False


def forest_plot(rows: Sequence[Row], title: str, label: str, *, zero: bool = False, width: float = 400) -> str:
    """Draws one row below the other: the name and the reading, seeds below them, the mean with its interval last.

    Args:
        rows: from top to bottom.
        title: headline.
        label: quantity and unit, written above the rows.
        zero: whether 0 is marked: for differences.
        width: width of the picture, in user units.

    Returns:
        One `<svg>` element, well-formed XML; the row of method `i` is a group of the class `m<i>`.
    """
    values = [value for row in rows for value in (*row.seeds.values(), row.mean, row.low, row.high) if drawable(value)]
    bottom = _TOP + _ROW * len(rows)
    body = [headline(title, label, width)]
    axis = Axis.around([*values, 0.0] if zero else values) if values else None
    if axis:
        body += _axis(axis, bottom, width, zero)
    for i, row in enumerate(rows):
        body.append(of_mark(row.mark, "".join(_row(row, _TOP + _ROW * i, axis, width))))
    readings = " ".join(f"{row.name}: {row.reading}." for row in rows)
    return picture(title, escape(f"{label}. {readings}"), "".join(body), width, bottom + _FOOT)


def _axis(axis: Axis, bottom: float, width: float, zero: bool) -> Iterator[str]:
    for tick, label in zip(axis.ticks(), axis.labels(), strict=True):
        x = axis.at(tick, _LEFT, width - _RIGHT)
        yield rule(f"M{x:.1f},{_TOP:.1f}V{bottom:.1f}", 0.6 if zero and tick == 0 else 0.1)
        half = text_width(label) / 2
        place, anchor = (0.0, "start") if x < half else (width, "end") if x + half > width else (x, "middle")
        yield text_at(place, bottom + 16, label, anchor=anchor, faint=True)
    yield rule(f"M{_LEFT:.1f},{bottom:.1f}H{width - _RIGHT:.1f}", 0.5)


def _row(row: Row, y: float, axis: Axis | None, width: float) -> Iterator[str]:
    room = width - text_width(row.reading) - 16
    name = shortened(printable(row.name), room)
    yield f'<rect x="0" y="{y - 1:.1f}" width="{width:g}" height="18" fill="var(--page, none)"/>'
    yield text_at(0, y + 13, name, weight=600)
    yield text_at(width, y + 13, row.reading, anchor="end", weight=700 if row.stressed else 400)
    if axis is None:
        return
    for seed, value, x, lane in _in_lanes(row.seeds, axis, width):
        yield row.mark.seed(x, y + 28 + lane, escape(f"{row.name}, seed {seed}: {number(value)}"))
    if drawable(row.mean):
        yield from _mean(row, y + 46, axis, width)


def _mean(row: Row, y: float, axis: Axis, width: float) -> Iterator[str]:
    if drawable(row.low) and drawable(row.high):
        low, high = (axis.at(value, _LEFT, width - _RIGHT) for value in (row.low, row.high))
        path = f"M{low:.1f},{y - 3:.1f}v6M{low:.1f},{y:.1f}H{high:.1f}M{high:.1f},{y - 3:.1f}v6"
        yield f'<path d="{path}" fill="none" stroke="{row.mark.colour}" stroke-width="2"/>'
    x = axis.at(row.mean, _LEFT, width - _RIGHT)
    yield row.mark.dot(x, y, escape(f"{row.name}: {row.reading}"), scale=1.5)


def _in_lanes(seeds: Mapping[int, float], axis: Axis, width: float) -> Iterator[tuple[int, float, float, float]]:
    """Seed, value, x, and how far off the line, so that seeds of about one value can be told apart."""
    ends = [-math.inf] * len(_LANES)
    for value, seed in sorted((value, seed) for seed, value in seeds.items() if drawable(value)):
        x = axis.at(value, _LEFT, width - _RIGHT)
        free = next((i for i, end in enumerate(ends) if x - end >= _SIZE), ends.index(min(ends)))
        ends[free] = x
        yield seed, value, x, _LANES[free]
