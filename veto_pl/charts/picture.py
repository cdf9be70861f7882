"""One theme for all charts, and a figure that becomes an `<svg>` element."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from unicodedata import east_asian_width

from veto_pl.charts.svg import INK, SOFT, standalone, svg_of
from veto_pl.charts.text import printable, tick_label
from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axis import Axis

__all__ = ["COLOURS", "DASHES", "Picture", "key", "look", "shortened", "standalone", "text_width", "themed"]
P = ParamSpec("P")
R = TypeVar("R")

# Four after Okabe and Ito (https://jfly.uni-koeln.de/color/) and two more that colour-blind readers tell from them,
# each with a contrast of at least 3:1 on the white and on the dark page (WCAG 2.2, 1.4.11).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc77aa", "#8877ee", "#bb3344")
DASHES = ("-", (0, (6, 3)), (0, (2, 2.5)), (0, (9, 3, 2, 3)), (0, (12, 4)))
MARKERS = "os^Dv"
TOP, BOTTOM, RIGHT, ROW = 50.0, 42.0, 14.0, 17.0
_THEME: Any = {
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "veto_pl",
    "text.parse_math": False,
    **dict.fromkeys(("axes.edgecolor", "grid.color", "text.color", "xtick.color"), INK),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), SOFT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon"), False),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.xmargin": 0,
    "grid.alpha": 0.13,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.scale_dashes": False,
    "path.simplify_threshold": 0.3,
}


def themed(draw: Callable[P, R]) -> Callable[P, R]:
    """Return `draw` with the theme in force while it runs."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib
        except ImportError as error:
            raise ConfigurationError(
                f"Charts need matplotlib, which cannot be imported ({error}). Run `pip install 'veto_pl[report]'`."
            ) from error
        with matplotlib.rc_context(_THEME):
            return draw(*args, **kwargs)

    return inside


def look(index: int, *, line: bool = False, marker: bool = False) -> dict[str, Any]:
    """Return how run or method number `index` is drawn, as properties of a line; the first 30 all differ."""
    colour = COLOURS[index % len(COLOURS)]
    return {
        "color": colour,
        "linestyle": DASHES[index % len(DASHES)] if line else "none",
        "marker": MARKERS[index % len(MARKERS)] if marker else "",
        "markersize": 5.2,
        "markeredgewidth": 0,
    }


class Picture:
    """A figure under construction, in the units of its `viewBox`. Make and finish it inside a `themed` function.

    Args:
        title: headline, plain text.
        label: what is shown and in which unit, below the headline.
        width: of the whole picture.
        height: between the axes; headline, ticks and legend come on top of it.
        names: place -> name, for the legend.
        lines: whether the legend shows lines beside the markers.
    """

    def __init__(
        self,
        title: str,
        label: str,
        width: float,
        height: float,
        names: Mapping[int, str] | None = None,
        *,
        lines: bool = True,
    ) -> None:
        from matplotlib.figure import Figure

        labels = {i: shortened(name, width - 52) for i, name in (names or {}).items()}
        columns = max(1, int(width // (max(map(text_width, labels.values()), default=0.0) + 56)))
        self._below = BOTTOM + ROW * -(-len(labels) // columns)
        self.title, self.width, self.height = printable(title), width, TOP + height + self._below
        self.figure = Figure(figsize=(width / 72, self.height / 72))
        self.axes = self.figure.add_subplot()
        self._tips: dict[str, Sequence[str]] = {}
        self.write(0, 13, shortened(title, width / 1.3), fontsize=13, fontweight="bold")
        self.write(0, 30, shortened(label, width), color=SOFT)
        if labels:
            self._legend(labels, columns, lines)

    def write(self, x: float, y: float, text: str, **looks: Any) -> Artist:
        """Write text at a place counted from the upper left corner."""
        return self.figure.text(x / self.width, 1 - y / self.height, printable(text), **looks)

    def of(self, index: int, *artists: Artist, tips: Sequence[str] = ()) -> None:
        """Put artists into groups of the class `m<index>`, which a page can hide; `tips` show on hover, by mark."""
        for artist in artists:
            name = f"m{index}-{len(self._tips)}"
            artist.set_gid(name)
            self._tips[name] = tips

    def frame(self, x_label: str, *, whole: bool = False, left: float | None = None) -> None:
        """Place the axes with room for their labels, and label ticks with round numbers where none were set.

        Args:
            x_label: written below the horizontal axis.
            whole: whether its ticks are whole numbers.
            left: where it begins; by default right of the labels of the vertical axis.
        """
        axes = self.axes
        axes.set_xlabel(x_label)
        _round_ticks(axes.xaxis, whole=whole)
        _round_ticks(axes.yaxis)
        if left is None:
            left = max(28.0, 10 + _widest(axes.yaxis))
        right = max(RIGHT, 1 + _widest(axes.xaxis) / 2)
        across = (self.width - left - right) / self.width
        axes.set_position((left / self.width, self._below / self.height, across, 1 - (TOP + self._below) / self.height))

    def say(self, text: str) -> None:
        """Write text in the middle of an empty frame."""
        self.axes.set_axis_off()
        self.axes.text(0.5, 0.5, text, ha="center", color=SOFT, transform=self.axes.transAxes)

    def svg(self, description: str) -> str:
        """Return one `<svg>` element, well-formed XML, named and described for screen readers."""
        return svg_of(self.figure, self._tips, self.title, printable(description))

    def _legend(self, labels: Mapping[int, str], columns: int, lines: bool) -> None:
        from matplotlib.lines import Line2D

        legend = self.figure.legend(
            [Line2D([], [], **look(i, line=lines, marker=True)) for i in labels],
            list(labels.values()),
            loc="lower left",
            bbox_to_anchor=(0, 0),
            ncols=columns,
            borderpad=0,
            borderaxespad=0,
            labelspacing=(ROW - 11) / 11,
            columnspacing=1.2,
            handlelength=2.4 if lines else 1.0,
        )
        for i, handle, text in zip(labels, legend.legend_handles, legend.get_texts(), strict=True):
            self.of(i, *filter(None, (handle,)), text)


@lru_cache
@themed
def key(index: int) -> str:
    """Return the legend's sample of a line as a small picture beside a name in running text."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(26 / 72, 10 / 72))
    figure.add_artist(Line2D([0, 0.5, 1], [0.5] * 3, markevery=[1], **look(index, line=True, marker=True)))
    return svg_of(figure, {})


def shortened(text: str, room: float) -> str:
    """Return printable text, cut to fit with an ellipsis."""
    text = printable(text)
    while text_width(text) > room:
        text = text[:-2] + "…"
    return text


@lru_cache(4096)
def text_width(text: str) -> float:
    """Return how wide a text is at font size 11, in the broad font of the theme: other fonts leave more room."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    known = "".join("W" if east_asian_width(c) in "WF" else c for c in text)  # the font lacks these scripts
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return float(text_to_path.get_text_width_height_descent(known, FontProperties(size=11), ismath=False)[0])


def _widest(axis: Axis) -> float:
    return max((text_width(text.get_text()) for text in axis.get_ticklabels()), default=0.0)


def _round_ticks(axis: Axis, *, whole: bool = False) -> None:
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    if isinstance(axis.get_major_locator(), FixedLocator):
        return
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,), numticks=8))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole))
    # Multiples of a tick's spacing may miss 0 by rounding.
    tiny = 0.0 if axis.get_scale() == "log" else 1e-9 * max(abs(low), abs(high))
    axis.set_major_formatter(lambda value, _: tick_label(value if abs(value) > tiny else 0.0))
