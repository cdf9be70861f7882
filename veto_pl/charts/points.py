"""Charts of seeds: rows with their means and intervals, and two quantities against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veto_pl.charts.curve import drawable
from veto_pl.charts.picture import TOP, Picture, look, shortened, text_width, themed
from veto_pl.charts.svg import INK, PAPER
from veto_pl.charts.text import number, printable

Point = tuple[float, float]
_ROW = 62.0
_LANES = (0.0, -6.0, 6.0)  # where the seeds of about one value go


@dataclass(frozen=True)
class Row:
    """A row of a forest plot.

    Args:
        name: of the method; its place among the rows gives it its look.
        seeds: seed -> value; what has no place on an axis is left out.
        mean: over the seeds.
        low: of the mean's interval; NaN where there is none.
        high: of the mean's interval.
        reading: the values as text, written at the end of the row.
        stressed: whether the reading is set in bold.
    """

    name: str
    seeds: Mapping[int, float]
    mean: float
    low: float
    high: float
    reading: str
    stressed: bool = False


@dataclass(frozen=True)
class Cloud:
    """The seeds of a method.

    Args:
        seeds: seed -> point; those with no place on the axes are left out.
        mean: their mean, or None where it has no place on the axes.
    """

    seeds: Mapping[int, Point]
    mean: Point | None


def hollow(index: int) -> dict[str, Any]:
    """Return the look of one seed among others: the marker of its method, hollow."""
    from matplotlib.colors import to_rgba

    of = look(index, marker=True)
    edge = {"markeredgecolor": of["color"], "markeredgewidth": 1}
    return of | edge | {"markerfacecolor": to_rgba(of["color"], 0.25), "clip_on": False}


def filled(index: int, scale: float) -> dict[str, Any]:
    """Return the look of a mean: the marker of its method, larger, with an edge that sets it off."""
    of = look(index, marker=True)
    edge = {"markeredgecolor": PAPER, "markeredgewidth": 1}
    return of | edge | {"markersize": scale * of["markersize"], "clip_on": False}


@themed
def forest_plot(rows: Sequence[Row], title: str, label: str, *, zero: bool = False, width: float = 400) -> str:
    """Draw one row below the other: the name and the reading, seeds below them, the mean with its interval last.

    Args:
        rows: from top to bottom.
        title: headline.
        label: quantity and unit, written above the rows.
        zero: whether 0 is marked: for differences.
        width: width of the picture, in user units.

    Returns:
        One `<svg>` element, well-formed XML; the row of method `i` is in groups of the class `m<i>`.
    """
    picture = Picture(title, label, width, _ROW * len(rows))
    axes = picture.axes
    axes.margins(x=0.05)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    if zero:
        axes.plot([0, 0], [0, _ROW * len(rows)], color=INK, linewidth=1, alpha=0.6)
    for i, row in enumerate(rows):
        _row(picture, i, row)
    axes.set_ylim(_ROW * len(rows), 0)
    axes.set_yticks([])
    picture.frame("", left=14)
    if not axes.has_data():
        axes.set_xticks([])
    return picture.svg(f"{label}. " + " ".join(f"{row.name}: {row.reading}." for row in rows))


def _row(picture: Picture, i: int, row: Row) -> None:
    y, axes, name = _ROW * i, picture.axes, printable(row.name)
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
    room = (picture.width - 16) / 1.15 - text_width(row.reading)  # both may be bold
    label = picture.write(0, TOP + y + 13, shortened(name, room), fontweight="bold", bbox=ground)
    weight = "bold" if row.stressed else "normal"
    reading = picture.write(picture.width, TOP + y + 13, row.reading, ha="right", fontweight=weight, bbox=ground)
    picture.of(i, label, reading)
    seeds = sorted((value, seed) for seed, value in row.seeds.items() if drawable(value))
    heights = [y + 28 + _LANES[k % len(_LANES)] for k in range(len(seeds))]
    picture.of(
        i, *axes.plot([value for value, _ in seeds], heights, **hollow(i)),
        tips=[f"{name}, seed {seed}: {number(value)}" for value, seed in seeds],
    )  # fmt: skip
    if drawable(row.mean):
        if drawable(row.low) and drawable(row.high):
            bar = {"color": look(i)["color"], "linewidth": 2, "marker": "|", "markersize": 6, "markeredgewidth": 2}
            picture.of(i, *axes.plot([row.low, row.high], [y + 46] * 2, clip_on=False, **bar))
        picture.of(i, *axes.plot([row.mean], [y + 46], **filled(i, 1.5)), tips=[f"{name}: {row.reading}"])


def pareto_front(points: Mapping[str, Point], better: tuple[int, int] = (1, 1)) -> list[str]:
    """Return the names that no other point beats in one quantity without losing in the other, by the first quantity.

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


@themed
def scatter(
    clouds: Mapping[str, Cloud],
    title: str,
    labels: tuple[str, str],
    *,
    better: tuple[int, int] = (0, 0),
    front: Sequence[str] = (),
    width: float = 400,
) -> str:
    """Draw clouds so that better is right and up, with arrows: where less is better, the axis is mirrored.

    Args:
        clouds: method -> its seeds; a look follows from the place.
        title: headline.
        labels: the horizontal and the vertical quantity, with their units.
        better: for each quantity, 1 where more is better, -1 where less is, 0 where neither is.
        front: methods whose means a dashed line joins, in the order of the horizontal quantity.
        width: width of the picture, in user units.

    Returns:
        One `<svg>` element, well-formed XML. All of method `i` is in groups of the class `m<i>`.
    """
    across, up = (_directed(*ends) for ends in zip(labels, better, "→↑", strict=True))
    picture = Picture(title, up, width, 260, dict(enumerate(clouds)), lines=False)
    picture.axes.margins(x=0.05)
    for i, (name, cloud) in enumerate(clouds.items()):
        seeds = {seed: point for seed, point in cloud.seeds.items() if all(map(drawable, point))}
        _marks(picture, i, {f"{name}, seed {seed}": point for seed, point in seeds.items()}, hollow(i))
        if cloud.mean and all(map(drawable, cloud.mean)):
            _marks(picture, i, {f"{name}, mean": cloud.mean}, filled(i, 1.9))
    if not picture.axes.has_data():
        picture.say("no finite values")
    else:
        ends = (picture.axes.get_xlim(), picture.axes.get_ylim())
        picture.axes.set(xlim=ends[0][:: better[0] or 1], ylim=ends[1][:: better[1] or 1])
        _staircase(picture, [p for name in front if (p := clouds[name].mean)])
        picture.frame(across)
    means = [f"{name}: {number(c.mean[0])}, {number(c.mean[1])}." for name, c in clouds.items() if c.mean]
    return picture.svg(" ".join([f"{labels[1]} against {labels[0]}; means over seeds.", *means]))


def _directed(label: str, better: int, arrow: str) -> str:
    return f"{label}, axis reversed {arrow}" if better < 0 else f"{label} {arrow}" if better > 0 else label


def _marks(picture: Picture, i: int, points: Mapping[str, Point], looks: dict[str, Any]) -> None:
    if points:
        tips = [f"{printable(name)}: {number(x)}, {number(y)}" for name, (x, y) in points.items()]
        picture.of(i, *picture.axes.plot(*zip(*points.values(), strict=True), **looks), tips=tips)


def _staircase(picture: Picture, front: Sequence[Point]) -> None:
    """Draw the border of what the front beats, from the left edge to the bottom."""
    if front:
        (left, _), (bottom, _) = picture.axes.get_xlim(), picture.axes.get_ylim()
        xs = [left, *(x for x, _ in front for _ in range(2))]
        ys = [*(y for _, y in front for _ in range(2)), bottom]
        picture.axes.plot(xs, ys, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (4, 3)), clip_on=False)
