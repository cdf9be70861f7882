"""Curves of methods over seeds: the mean as a line in a band from the least to the greatest seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from veto_pl.report.axis import Axis, LogAxis
from veto_pl.report.curve import Curve
from veto_pl.report.drawing import BOTTOM, TOP, Frame, headline, legend, of_mark, picture, text_at
from veto_pl.report.envelope import Envelope
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.svg import few, path_of
from veto_pl.report.table import number

_PLOT = 170.0


@dataclass(frozen=True)
class _Words:
    """How places on the axes are said."""

    x: str
    log: bool

    def number(self, value: float) -> str:
        return number(10**value if self.log else value)

    def at(self, x: int, value: float) -> str:
        return f"{self.x} {x:,}: {self.number(value)}"


def band_chart(
    series: Mapping[str, Sequence[Curve]],
    title: str,
    y_label: str,
    *,
    log: bool = False,
    band: bool = True,
    only: str | None = None,
    points: int = 120,
    x_label: str = "step",
    width: float = 400,
) -> str:
    """Overlays methods, each with its seeds.

    Args:
        series: method -> one curve per seed; a method's look follows from its place.
        title: headline.
        y_label: quantity and unit, written above the vertical axis.
        log: whether the vertical axis is logarithmic; the mean is then geometric, and values up to 0 are gaps.
        band: whether the range over the seeds is drawn, not the mean alone.
        only: the one method to draw, on the axes of all.
        points: the most points of a curve.
        x_label: written below the horizontal axis.
        width: width of the picture, in user units.

    Returns:
        One `<svg>` element, well-formed XML. Everything of method `i` is in groups of the class `m<i>`.
    """
    words = _Words(x_label, log)
    drawn = {name: [_log(curve) for curve in curves] if log else curves for name, curves in series.items()}
    envelopes = {name: (Mark(i), Envelope.of(curves, points)) for i, (name, curves) in enumerate(drawn.items())}
    shown = {name: item for name, item in envelopes.items() if item[1].low.points()}
    body, height = [headline(title, y_label, width)], TOP + _PLOT + BOTTOM
    if shown:
        frame = _frame([envelope for _, envelope in shown.values()], log, band, width)
        shown = {name: item for name, item in shown.items() if only in (None, name)}
        bands = "".join(_band(frame, *item) for item in shown.values() if band)
        lines = "".join(_line(frame, name, *item, words) for name, item in shown.items())
        body += [frame.axes(x_label), bands, lines]
    else:
        body.append(text_at(width / 2, TOP + _PLOT / 2, "no finite values", anchor="middle", faint=True))
    keys, size = legend({name: mark for name, (mark, _) in shown.items()}, width)
    body.append(f'<g transform="translate(0 {height:g})">{keys}</g>')
    return picture(title, _description(shown, y_label, words), "".join(body), width, height + size)


def _log(curve: Curve) -> Curve:
    return Curve(curve.steps, tuple(math.log10(value) if value > 0 else math.nan for value in curve.values))


def _frame(envelopes: Sequence[Envelope], log: bool, band: bool, width: float) -> Frame:
    means = [point for envelope in envelopes for point in envelope.mean.points()]
    ends = [point for e in envelopes for curve in (e.low, e.high) for point in curve.points()]
    points = ends if band else means or ends
    values = [value for _, value in points]
    return Frame.between(
        Axis.of_steps([step for step, _ in points]), (LogAxis if log else Axis).around(values), width, _PLOT
    )


def _band(frame: Frame, mark: Mark, envelope: Envelope) -> str:
    if not envelope.has_range:
        return ""
    parts = []
    for low, high in zip(envelope.low.segments(), envelope.high.segments(), strict=True):
        parts.append(f"{frame.path(low + high[::-1])}Z")
    return of_mark(mark, mark.area("".join(parts)))


def _line(frame: Frame, name: str, mark: Mark, envelope: Envelope, words: _Words) -> str:
    line = mark.line(path_of(frame, envelope.mean)) if envelope.mean.points() else ""
    return of_mark(mark, line + "".join(_dots(frame, name, mark, envelope, words)))


def _dots(frame: Frame, name: str, mark: Mark, envelope: Envelope, words: _Words) -> Iterator[str]:
    ranges = zip(envelope.low.values, envelope.high.values, strict=True)
    extremes = dict(zip(envelope.mean.steps, ranges, strict=True))
    for step, value in few(envelope.mean, mark):
        low, high = extremes[step]
        spread = f" ({words.number(low)} to {words.number(high)})" if low < high else ""
        yield mark.dot(*frame.place(step, value), escape(f"{name}, {words.at(step, value)}{spread}"))


def _description(shown: Mapping[str, tuple[Mark, Envelope]], y_label: str, words: _Words) -> str:
    parts = [f"{y_label} over {words.x}, mean and range over seeds."]
    for name, (_, envelope) in shown.items():
        if points := envelope.mean.points():
            (first, start), (last, end) = points[0], points[-1]
            ends = f"{words.at(first, start)}, {words.at(last, end)}"
            parts.append(f"{name}: {ends}, {envelope.seeds} {'seed' if envelope.seeds == 1 else 'seeds'}.")
    return escape(" ".join(parts))
