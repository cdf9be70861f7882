"""Line charts as SVG text: no script, no library, readable on light and dark pages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from veto_pl.report.axis import Axis
from veto_pl.report.curve import Curve
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape, printable
from veto_pl.report.table import number

_CHARACTER = 6.4  # mean width of a character at font size 11
_TOP, _RIGHT, _BOTTOM, _ROW = 44.0, 12.0, 40.0, 17.0


def line_chart(
    series: Mapping[str, Curve],
    title: str,
    y_label: str,
    *,
    x_label: str = "step",
    width: float = 400,
    plot_height: float = 170,
) -> str:
    """Overlays curves in one picture.

    A run's look follows from its place in `series`; an empty curve keeps its place and is left out. Long noisy curves
    are drawn faintly with their moving mean on top; up to 25 points get a marker each, more a few of them.

    Args:
        series: one curve per run.
        title: headline.
        y_label: quantity and unit, written above the vertical axis.
        x_label: written below the horizontal axis.
        width: width of the picture, in user units.
        plot_height: height between the axes, in user units; title, axis and legend come on top of it.

    Returns:
        One `<svg>` element, well-formed XML.
    """
    shown = {name: (Mark(i), curve) for i, (name, curve) in enumerate(series.items()) if curve.points()}
    body = [_text(0, 13, title, size=13, weight=600), _text(0, 30, y_label, faint=True)]
    height = _TOP + plot_height + _BOTTOM
    if shown:
        lines = [line for _, curve in shown.values() for line in (curve, _line(curve))]
        frame = _Frame.around(lines, width, plot_height)
        body += [frame.axes(x_label), *(frame.curve(name, *item) for name, item in shown.items())]
    else:
        body.append(_text(width / 2, _TOP + plot_height / 2, "no finite values", anchor="middle", faint=True))
    if len(series) > 1:
        legend, size = _legend({name: mark for name, (mark, _) in shown.items()}, width)
        body.append(f'<g transform="translate(0 {height:g})">{legend}</g>')
        height += size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {width:g} {height:g}" '
        'font-family="system-ui, sans-serif">'
        f"<title>{escape(title)}</title><desc>{_description(series, y_label)}</desc>{''.join(body)}</svg>\n"
    )


@dataclass(frozen=True)
class _Frame:
    """Where the axes lie, in user units."""

    x: Axis
    y: Axis
    left: float
    right: float
    bottom: float

    @classmethod
    def around(cls, curves: Sequence[Curve], width: float, plot_height: float) -> _Frame:
        points = [point for curve in curves for point in curve.points()]
        x, y = Axis.of_steps([step for step, _ in points]), Axis.around([value for _, value in points])
        left = max(28.0, 8 + _CHARACTER * max((len(label) for label in y.labels()), default=0))
        return cls(x, y, left, width - _RIGHT, _TOP + plot_height)

    def place(self, step: float, value: float) -> tuple[float, float]:
        return self.x.at(step, self.left, self.right), self.y.at(value, self.bottom, _TOP)

    def axes(self, x_label: str) -> str:
        parts = []
        for tick, label in zip(self.y.ticks(), self.y.labels(), strict=True):
            y = self.y.at(tick, self.bottom, _TOP)
            parts.append(_rule(f"M{self.left:.1f},{y:.1f}H{self.right:.1f}", 0.13))
            parts.append(_text(self.left - 6, y + 3.8, label, anchor="end", faint=True))
        for tick, label in zip(self.x.ticks(), self.x.labels(), strict=True):
            x = self.x.at(tick, self.left, self.right)
            parts.append(_rule(f"M{x:.1f},{self.bottom:.1f}v4", 0.5))
            parts.append(_text(x, self.bottom + 16, label, anchor=self._anchor(x, label), faint=True))
        parts.append(_rule(f"M{self.left:.1f},{self.bottom:.1f}H{self.right:.1f}", 0.5))
        middle = (self.left + self.right) / 2
        return "".join([*parts, _text(middle, self.bottom + 30, x_label, anchor="middle", faint=True)])

    def _anchor(self, x: float, label: str) -> str:
        return "end" if x + _CHARACTER * len(label) / 2 > self.right + _RIGHT else "middle"

    def curve(self, name: str, mark: Mark, curve: Curve) -> str:
        line = _line(curve)
        faint = mark.faint(self._path(curve.thinned())) if curve.is_noisy else ""
        return faint + mark.line(self._path(line.thinned())) + "".join(self._dots(name, mark, line))

    def _path(self, curve: Curve) -> str:
        segments = [[self.place(*point) for point in segment] for segment in curve.segments()]
        return "".join("M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in segment) for segment in segments)

    def _dots(self, name: str, mark: Mark, curve: Curve) -> Iterator[str]:
        points = curve.points()
        if len(points) > 25:
            every = len(points) // 5
            lone = [segment[0] for segment in curve.segments() if len(segment) == 1]
            points = sorted({*points[every // 2 + mark.index * every // 7 % every :: every], *lone})
        for step, value in points:
            yield mark.dot(*self.place(step, value), escape(f"{name}, step {step:,}: {number(value)}"))


def _text(
    x: float, y: float, text: str, *, size: float = 11, weight: int = 400, anchor: str = "", faint: bool = False
) -> str:
    extra = f' text-anchor="{anchor}"' if anchor else ""
    extra += f' font-weight="{weight}"' if weight != 400 else ""
    extra += ' fill-opacity="0.7"' if faint else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="currentColor"{extra}>{escape(text)}</text>'


def _line(curve: Curve) -> Curve:
    return curve.pooled().smoothed() if curve.is_noisy else curve


def _rule(path: str, opacity: float) -> str:
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="{opacity:g}"/>'


def _text_width(text: str) -> float:
    return _CHARACTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _shortened(name: str, room: float) -> str:
    while _text_width(name) > room:
        name = name[:-2] + "…"
    return name


def _legend(marks: Mapping[str, Mark], width: float) -> tuple[str, float]:
    """The names with their looks, in as many rows as they need, and the height of that."""
    parts = []
    x = y = 0.0
    for name, mark in marks.items():
        label = _shortened(printable(name), width - 32)
        size = 32 + _text_width(label)
        if x + size > width:
            x, y = 0.0, y + _ROW
        parts += [mark.key(x, y + 6.5), _text(x + 32, y + 10, label)]
        x += size + 16
    return "".join(parts), y + _ROW


def _description(series: Mapping[str, Curve], y_label: str) -> str:
    parts = [escape(f"{y_label} over steps.")]
    for name, curve in series.items():
        if points := curve.points():
            (first, start), (last, end) = points[0], points[-1]
            ends = f"{number(start)} at step {first:,}, {number(end)} at step {last:,}"
            parts.append(escape(f"{name}: {ends}, {len(points)} points."))
    return " ".join(parts)
