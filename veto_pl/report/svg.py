"""Line charts as SVG text: no script, no library, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from veto_pl.report.axis import Axis
from veto_pl.report.curve import Curve
from veto_pl.report.drawing import BOTTOM, TOP, Frame, headline, legend, picture, text_at
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.table import number


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
    body = [headline(title, y_label, width)]
    height = TOP + plot_height + BOTTOM
    if shown:
        lines = [line for _, curve in shown.values() for line in (curve, _line(curve))]
        frame = around(lines, width, plot_height)
        body += [frame.axes(x_label), *(_curve(frame, name, *item) for name, item in shown.items())]
    else:
        body.append(text_at(width / 2, TOP + plot_height / 2, "no finite values", anchor="middle", faint=True))
    if len(series) > 1:
        keys, size = legend({name: mark for name, (mark, _) in shown.items()}, width)
        body.append(f'<g transform="translate(0 {height:g})">{keys}</g>')
        height += size
    return picture(title, _description(series, y_label), "".join(body), width, height)


def around(curves: Sequence[Curve], width: float, plot_height: float) -> Frame:
    """The frame that holds all points of the curves, of which there is at least one."""
    points = [point for curve in curves for point in curve.points()]
    x, y = Axis.of_steps([step for step, _ in points]), Axis.around([value for _, value in points])
    return Frame.between(x, y, width, plot_height)


def few(curve: Curve, mark: Mark) -> list[tuple[int, float]]:
    """The points that get a marker: all of up to 25, else a few, and those that no line goes through."""
    points = curve.points()
    if len(points) <= 25:
        return points
    every = len(points) // 5
    lone = [segment[0] for segment in curve.segments() if len(segment) == 1]
    return sorted({*points[every // 2 + mark.index * every // 7 % every :: every], *lone})


def path_of(frame: Frame, curve: Curve) -> str:
    """An SVG path that leaves the gaps out."""
    return "".join(frame.path(segment) for segment in curve.segments())


def _curve(frame: Frame, name: str, mark: Mark, curve: Curve) -> str:
    line = _line(curve)
    faint = mark.faint(path_of(frame, curve.thinned())) if curve.is_noisy else ""
    return faint + mark.line(path_of(frame, line.thinned())) + "".join(_dots(frame, name, mark, line))


def _dots(frame: Frame, name: str, mark: Mark, curve: Curve) -> Iterator[str]:
    for step, value in few(curve, mark):
        yield mark.dot(*frame.place(step, value), escape(f"{name}, step {step:,}: {number(value)}"))


def _line(curve: Curve) -> Curve:
    return curve.pooled().smoothed() if curve.is_noisy else curve


def _description(series: Mapping[str, Curve], y_label: str) -> str:
    parts = [escape(f"{y_label} over steps.")]
    for name, curve in series.items():
        if points := curve.points():
            (first, start), (last, end) = points[0], points[-1]
            ends = f"{number(start)} at step {first:,}, {number(end)} at step {last:,}"
            parts.append(escape(f"{name}: {ends}, {len(points)} points."))
    return " ".join(parts)
