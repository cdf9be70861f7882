"""Curves over the student's probability, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from veto_pl.explain.axes import LogAxis, LogitAxis
from veto_pl.report.axis import Axis
from veto_pl.report.drawing import BOTTOM, TOP, Frame, headline, legend, of_mark, picture, rule, text_at
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.table import number

Point = tuple[float, float]
X_LABEL = "student's probability of the teacher's choice"
_MARKERS = 5
_ROUNDING = 1e-9  # what is left of a difference that is 0


def curves(
    series: Mapping[str, Sequence[Point]],
    title: str,
    y_label: str,
    *,
    teacher: float,
    logarithmic: bool = False,
    share: bool = False,
    width: float = 400,
    plot_height: float = 220,
) -> str:
    """Overlays curves; an upright line shows where the student agrees with the teacher.

    Args:
        series: name -> points, the student's probability and a value; values that are not finite, or not clearly
            positive on a logarithmic axis, are left out.
        title: headline.
        y_label: quantity and unit.
        teacher: the teacher's probability.
        logarithmic: whether the vertical axis is.
        share: whether the values are probabilities, so that the vertical axis goes from 0 to 1.
        width: of the picture, in user units.
        plot_height: height between the axes.

    Returns:
        One `<svg>` element, well-formed XML.
    """
    shown = {name: [p for p in points if _drawable(p[1], logarithmic)] for name, points in series.items()}
    marks = {name: Mark(i) for i, name in enumerate(series)}
    body, height = [headline(title, y_label, width)], TOP + plot_height + BOTTOM
    if values := [value for points in shown.values() for _, value in points]:
        x = LogitAxis.around([p for points in series.values() for p, _ in points])
        y = LogAxis.around(values) if logarithmic else Axis(0.0, 1.0, 0.2) if share else Axis.around(values)
        frame = Frame.between(x, y, width, plot_height)
        body += [frame.axes(X_LABEL), _agreement(frame, teacher)]
        body += [of_mark(marks[name], _curve(frame, name, marks[name], points)) for name, points in shown.items()]
    else:
        body.append(text_at(width / 2, TOP + plot_height / 2, "no finite values", anchor="middle", faint=True))
    keys, size = legend(marks, width) if len(series) > 1 else ("", 0.0)
    body.append(f'<g transform="translate(0 {height:g})">{keys}</g>')
    return picture(title, _description(shown, y_label), "".join(body), width, height + size)


def _drawable(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > _ROUNDING or not logarithmic)


def _agreement(frame: Frame, teacher: float) -> str:
    x, _ = frame.place(teacher, frame.y.ticks()[0])
    line = rule(f"M{x:.1f},{frame.bottom:.1f}V{TOP:.1f}", 0.4)
    return line + text_at(x, TOP - 3, "teacher", anchor="middle", faint=True)


def _curve(frame: Frame, name: str, mark: Mark, points: Sequence[Point]) -> str:
    if not points:
        return ""
    every = max(1, len(points) // _MARKERS)
    dots = [
        mark.dot(*frame.place(*point), escape(f"{name}, at {point[0]:.3g}: {number(point[1])}"))
        for point in points[every // 2 + mark.index % max(every // 2, 1) :: every]
    ]
    return mark.line(frame.path(points)) + "".join(dots)


def _description(shown: Mapping[str, Sequence[Point]], y_label: str) -> str:
    parts = [f"{y_label} over the {X_LABEL}."]
    for name, points in shown.items():
        if points:
            (first, start), (last, end) = points[0], points[-1]
            parts.append(f"{name}: {number(start)} at {first:.3g}, {number(end)} at {last:.6g}.")
    return escape(" ".join(parts))
