"""Curves of runs and methods over the steps: the mean as a line in a band from the least to the greatest value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from veto_pl.charts.curve import Curve, Envelope, Numbers
from veto_pl.charts.picture import Picture, look, themed
from veto_pl.charts.text import number, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@themed
def curve_chart(
    series: Mapping[str, Sequence[Curve]],
    title: str,
    label: str,
    *,
    x_label: str = "step",
    log: bool = False,
    band: bool = True,
    only: str | None = None,
    points: int = 120,
    width: float = 400,
    height: float = 170,
    adjust: Callable[[Axes], None] | None = None,
) -> str:
    """Draw runs or methods, each with its seeds, in one picture.

    Args:
        series: name -> one curve per seed; a look follows from the place. An empty one keeps its place and is left out.
        title: headline.
        label: quantity and unit, written above the vertical axis.
        x_label: written below the horizontal axis.
        log: whether the vertical axis is logarithmic; the mean is then geometric, and values up to 0 are gaps.
        band: whether the range over the seeds, and over the steps between two points, is drawn.
        only: the one name to draw, on the axes of all.
        points: the most points of a curve; the steps between them are summed up in the mean and the band.
        width: width of the picture, in user units.
        height: height between the axes, in user units.
        adjust: changes the axes once all is drawn, where a picture needs other scales or limits.

    Returns:
        One `<svg>` element, well-formed XML. All of number `i` is in groups of the class `m<i>`.
    """
    envelopes = {i: (name, _envelope(curves, points, log=log)) for i, (name, curves) in enumerate(series.items())}
    found = {i: item for i, item in envelopes.items() if np.isfinite(item[1].low).any()}
    shown = {i: item for i, item in found.items() if only in (None, item[0])}
    picture = Picture(
        title, label, width, height, {i: name for i, (name, _) in shown.items()} if len(series) > 1 else {}
    )
    if not found:
        picture.say("no finite values")
    else:
        picture.axes.set_yscale("log" if log else "linear")
        _reserve(picture.axes, [envelope for _, envelope in found.values()], band)
        for i, (_, envelope) in shown.items() if band else ():
            _band(picture, i, envelope)
        for i, (name, envelope) in shown.items():
            _line(picture, i, printable(name), envelope, x_label)
        (adjust or (lambda axes: None))(picture.axes)
        picture.frame(x_label, whole=True)
    return picture.svg(_description(shown, label, x_label))


def _envelope(curves: Sequence[Curve], points: int, *, log: bool) -> Envelope:
    if not log:
        return Envelope.of(curves, points)
    logs = [Curve(c.steps, tuple(math.log10(v) if v > 0 else math.nan for v in c.values)) for c in curves]
    found = Envelope.of(logs, points)
    return Envelope(found.steps, 10**found.mean, 10**found.low, 10**found.high)


def _reserve(axes: Axes, envelopes: Sequence[Envelope], band: bool) -> None:
    """Give the axes room for all values, but not across zero."""
    parts = ("low", "high") if band or not any(np.isfinite(e.mean).any() for e in envelopes) else ("mean",)
    values = np.concatenate([getattr(e, part) for e in envelopes for part in parts])
    steps = np.concatenate([e.steps[np.isfinite(e.low)] for e in envelopes])
    low, high = np.nanmin(values), np.nanmax(values)
    axes.set_xlim(*_wider(steps.min(), steps.max(), 1.0, 0.0))
    if axes.get_yscale() == "log":
        room = max(high**0.05 / low**0.05, 1.1)
        least, most = np.finfo(float).tiny, np.finfo(float).max
        axes.set_ylim(max(low / room, least), max(min(high, most / room) * room, 2 * least))
    else:
        bottom, top = _wider(low, high, abs(low) / 10 or 1.0, 0.05)
        axes.set_ylim(max(bottom, 0.0) if low >= 0 else bottom, min(top, 0.0) if high <= 0 and low < 0 else top)


def _wider(low: float, high: float, room: float, share: float) -> tuple[float, float]:
    """Return the range with a share of it on either side; `room` where it is so narrow that labels are all digits."""
    if high - low > max(1e-6 * max(abs(low), abs(high)), 1e-90):
        room = share * (high - low)
    return low - room, high + room


def _band(picture: Picture, i: int, envelope: Envelope) -> None:
    if (envelope.low < envelope.high).any():
        colour = look(i)["color"]
        area = picture.axes.fill_between(
            envelope.steps, envelope.low, envelope.high, color=colour, alpha=0.16, linewidth=0, clip_on=False
        )
        picture.of(i, area)


def _line(picture: Picture, i: int, name: str, envelope: Envelope, x_label: str) -> None:
    (line,) = picture.axes.plot(envelope.steps, envelope.mean, clip_on=False, **look(i, line=True))
    at = _marked(envelope.mean, i)
    marks = picture.axes.plot(envelope.steps[at], envelope.mean[at], clip_on=False, **look(i, marker=True))
    picture.of(i, line)
    picture.of(i, *marks, tips=[_tip(name, envelope, j, x_label) for j in at])


def _marked(values: Numbers, i: int) -> list[int]:
    """Return which points get a marker: all of up to 25, else a few, and those that no line goes through."""
    finite = np.isfinite(values)
    places = np.flatnonzero(finite)
    if len(places) <= 25:
        return [int(j) for j in places]
    every = len(places) // 5
    before, after = np.r_[False, finite[:-1]], np.r_[finite[1:], False]
    lone = np.flatnonzero(finite & ~before & ~after)
    return [int(j) for j in np.union1d(places[every // 2 + i * every // 7 % every :: every], lone)]


def _tip(name: str, envelope: Envelope, j: int, x_label: str) -> str:
    low, high = envelope.low[j], envelope.high[j]
    spread = f" ({number(low)} to {number(high)})" if low < high else ""
    return f"{name}, {x_label} {_place(envelope.steps[j])}: {number(envelope.mean[j])}{spread}"


def _place(step: float) -> str:
    return f"{step:,.0f}" if float(step).is_integer() else f"{step:.6g}"


def _description(shown: Mapping[int, tuple[str, Envelope]], label: str, x_label: str) -> str:
    parts = [f"{label} over {x_label}."]
    for name, envelope in shown.values():
        ends = np.flatnonzero(np.isfinite(envelope.mean))[[0, -1]] if np.isfinite(envelope.mean).any() else ()
        said = [f"{number(envelope.mean[j])} at {x_label} {_place(envelope.steps[j])}" for j in ends]
        parts += [f"{name}: {', '.join(said)}."] if said else []
    return " ".join(parts)
