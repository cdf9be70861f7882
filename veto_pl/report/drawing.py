"""What all pictures are made of: text, rules, legends, the frame with its axes."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veto_pl.report.axis import Axis
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape, printable

TOP, RIGHT, BOTTOM, ROW = 44.0, 12.0, 40.0, 17.0
# Widths at font size 11, of a broad sans-serif: where the reader's is narrower, there is only more room.
_NARROW = dict.fromkeys(" !'()*,-./:;I[\\]`fijlrt|", 4.6)
_BROAD = dict.fromkeys("%@MWmw…—", 11.0)
_LARGE = 1.33  # how much wider a text is at font size 13, in bold


def picture(title: str, description: str, body: str, width: float, height: float) -> str:
    """One `<svg>` element, well-formed XML, named for screen readers; `body` and `description` are escaped already."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {width:g} {height:g}" '
        'font-family="system-ui, sans-serif">'
        f"<title>{escape(title)}</title><desc>{description}</desc>{body}</svg>\n"
    )


def headline(title: str, label: str, width: float) -> str:
    """The title, and below it what the picture shows, cut to fit."""
    large = shortened(printable(title), width / _LARGE)
    return text_at(0, 13, large, size=13, weight=600) + text_at(0, 30, shortened(printable(label), width), faint=True)


def text_at(
    x: float, y: float, text: str, *, size: float = 11, weight: int = 400, anchor: str = "", faint: bool = False
) -> str:
    """Text in the page's colour, escaped."""
    extra = f' text-anchor="{anchor}"' if anchor else ""
    extra += f' font-weight="{weight}"' if weight != 400 else ""
    extra += ' fill-opacity="0.7"' if faint else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="currentColor"{extra}>{escape(text)}</text>'


def rule(path: str, opacity: float) -> str:
    """A hairline."""
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="{opacity:g}"/>'


def text_width(text: str) -> float:
    """How wide a text is at font size 11, at most."""
    return sum(_width(c) for c in text)


def _width(character: str) -> float:
    if known := _NARROW.get(character) or _BROAD.get(character):
        return known
    if unicodedata.east_asian_width(character) in "WF":
        return 13.0
    return 7.0 if character.islower() or character.isdigit() else 9.2


def shortened(name: str, room: float) -> str:
    """The name, cut to fit with an ellipsis."""
    while text_width(name) > room:
        name = name[:-2] + "…"
    return name


def of_mark(mark: Mark, body: str) -> str:
    """A group that a page can hide together with everything else of that mark."""
    return f'<g class="m{mark.index}">{body}</g>'


def legend(marks: Mapping[str, Mark], width: float, *, dots: bool = False) -> tuple[str, float]:
    """The names with their looks (the markers alone with `dots`), in as many rows as needed, and the height of that."""
    lead = 18 if dots else 32
    parts = []
    x = y = 0.0
    for name, mark in marks.items():
        label = shortened(printable(name), width - lead)
        size = lead + text_width(label)
        if x + size > width:
            x, y = 0.0, y + ROW
        key = mark.dot(x + 6, y + 6.5, scale=1.5) if dots else mark.key(x, y + 6.5)
        parts.append(of_mark(mark, key + text_at(x + lead, y + 10, label)))
        x += size + 16
    return "".join(parts), y + ROW


@dataclass(frozen=True)
class Frame:
    """Where the axes lie, in user units.

    Args:
        x: the horizontal axis.
        y: the vertical axis.
        left: where `x` starts.
        right: where `x` ends.
        bottom: where `y` starts; it ends at `TOP`.
        mirrored: which of `x` and `y` run backwards.
    """

    x: Axis
    y: Axis
    left: float
    right: float
    bottom: float
    mirrored: tuple[bool, bool] = (False, False)

    @classmethod
    def between(
        cls, x: Axis, y: Axis, width: float, plot_height: float, mirrored: tuple[bool, bool] = (False, False)
    ) -> Frame:
        """A frame `width` wide with room for the labels of `y`."""
        left = max(28.0, 8 + max(map(text_width, y.labels()), default=0.0))
        return cls(x, y, left, width - RIGHT, TOP + plot_height, mirrored)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies."""
        return self._x(x), self._y(y)

    def _x(self, value: float) -> float:
        return self.x.at(value, *((self.right, self.left) if self.mirrored[0] else (self.left, self.right)))

    def _y(self, value: float) -> float:
        return self.y.at(value, *((TOP, self.bottom) if self.mirrored[1] else (self.bottom, TOP)))

    def axes(self, x_label: str) -> str:
        """Ticks, labels, and lines across at the ticks of `y`."""
        parts = []
        for tick, label in zip(self.y.ticks(), self.y.labels(), strict=True):
            y = self._y(tick)
            parts.append(rule(f"M{self.left:.1f},{y:.1f}H{self.right:.1f}", 0.13))
            parts.append(text_at(self.left - 6, y + 3.8, label, anchor="end", faint=True))
        for tick, label in zip(self.x.ticks(), self.x.labels(), strict=True):
            x = self._x(tick)
            parts.append(rule(f"M{x:.1f},{self.bottom:.1f}v4", 0.5))
            parts.append(text_at(x, self.bottom + 16, label, anchor=self._anchor(x, label), faint=True))
        parts.append(rule(f"M{self.left:.1f},{self.bottom:.1f}H{self.right:.1f}", 0.5))
        middle = (self.left + self.right) / 2
        return "".join([*parts, text_at(middle, self.bottom + 30, x_label, anchor="middle", faint=True)])

    def _anchor(self, x: float, label: str) -> str:
        return "end" if x + text_width(label) / 2 > self.right + RIGHT else "middle"

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """A polyline through points in the units of the axes."""
        return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
