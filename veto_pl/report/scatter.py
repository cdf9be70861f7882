"""Scatter plots of two quantities: a mark per seed, a large one per method, and the front of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veto_pl.report.axis import Axis
from veto_pl.report.curve import drawable
from veto_pl.report.drawing import BOTTOM, TOP, Frame, headline, legend, of_mark, picture, text_at
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.quantities import Quantity
from veto_pl.report.table import number

Point = tuple[float, float]
_PLOT = 260.0


@dataclass(frozen=True)
class Cloud:
    """The seeds of a method.

    Args:
        mark: its look.
        seeds: seed -> point; those with no place on the axes are left out.
        mean: their mean, or None where it has no place on the axes.
    """

    mark: Mark
    seeds: Mapping[int, Point]
    mean: Point | None


def pareto_front(points: Mapping[str, Point], better: tuple[int, int] = (1, 1)) -> list[str]:
    """The names that no other point beats in one quantity without losing in the other, by the first quantity.

    Args:
        points: name -> point.
        better: for each quantity, -1 where less is better.

    >>> pareto_front({"a": (0.0, 2.0), "b": (1.0, 1.0), "c": (0.5, 0.5), "d": (1.0, 1.0)})
    ['a', 'b', 'd']
    """
    signed = {name: (x * better[0], y * better[1]) for name, (x, y) in points.items()}
    front = [
        name
        for name, (x, y) in signed.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in signed.values())
    ]
    return sorted(front, key=lambda name: signed[name][0])


def scatter(
    clouds: Mapping[str, Cloud], title: str, x: Quantity, y: Quantity, *, front: Sequence[str] = (), width: float = 400
) -> str:
    """Draws clouds so that better is right and up, with arrows: where less is better, the axis is mirrored.

    Args:
        clouds: method -> its seeds.
        title: headline.
        x: the horizontal quantity; points are in its unit.
        y: the vertical quantity.
        front: methods whose means a dashed line joins, in the order of `x`.
        width: width of the picture, in user units.

    Returns:
        One `<svg>` element, well-formed XML. Everything of method `i` is in groups of the class `m<i>`.
    """
    points = [p for cloud in clouds.values() for p in (*cloud.seeds.values(), cloud.mean) if p and _has_place(p)]
    body, height = [headline(title, _label(y, "↑"), width)], TOP + _PLOT + BOTTOM
    if points:
        axes = (Axis.around([a for a, _ in points]), Axis.around([b for _, b in points]))
        frame = Frame.between(*axes, width, _PLOT, (x.better < 0, y.better < 0))
        body.append(frame.axes(_label(x, "→")))
        body.append(_staircase(frame, [p for name in front if (p := clouds[name].mean)]))
        body += [of_mark(cloud.mark, _seeds(frame, name, cloud)) for name, cloud in clouds.items()]
        body += [of_mark(cloud.mark, _mean(frame, name, cloud)) for name, cloud in clouds.items()]
    else:
        body.append(text_at(width / 2, TOP + _PLOT / 2, "no finite values", anchor="middle", faint=True))
    keys, size = legend({name: cloud.mark for name, cloud in clouds.items()}, width, dots=True)
    body.append(f'<g transform="translate(0 {height:g})">{keys}</g>')
    return picture(title, _description(clouds, x, y), "".join(body), width, height + size)


def _label(quantity: Quantity, arrow: str) -> str:
    words = f"{quantity.unit}, {quantity.group}" if quantity.group else quantity.unit
    if not quantity.better:
        return words
    return f"{words}, axis reversed {arrow}" if quantity.better < 0 else f"{words} {arrow}"


def _has_place(point: Point) -> bool:
    return drawable(point[0]) and drawable(point[1])


def _staircase(frame: Frame, front: Sequence[Point]) -> str:
    """The border of what the front beats, from the left edge to the bottom."""
    if not front:
        return ""
    places = [frame.place(*point) for point in front]
    steps = "".join(f"V{y:.1f}H{x:.1f}" for x, y in places[1:])
    path = f"M{frame.left:.1f},{places[0][1]:.1f}H{places[0][0]:.1f}{steps}V{frame.bottom:.1f}"
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="0.55" stroke-dasharray="4 3"/>'


def _seeds(frame: Frame, name: str, cloud: Cloud) -> str:
    return "".join(
        cloud.mark.seed(*frame.place(*point), escape(f"{name}, seed {seed}: {number(point[0])}, {number(point[1])}"))
        for seed, point in cloud.seeds.items()
        if _has_place(point)
    )


def _mean(frame: Frame, name: str, cloud: Cloud) -> str:
    if cloud.mean is None or not _has_place(cloud.mean):
        return ""
    tip = f"{name}, mean: {number(cloud.mean[0])}, {number(cloud.mean[1])}"
    return cloud.mark.dot(*frame.place(*cloud.mean), escape(tip), scale=1.9)


def _description(clouds: Mapping[str, Cloud], x: Quantity, y: Quantity) -> str:
    means = [
        f"{name}: {number(cloud.mean[0])}, {number(cloud.mean[1])}." for name, cloud in clouds.items() if cloud.mean
    ]
    return escape(" ".join([f"{y.unit} against {x.unit}; means over seeds.", *means]))
