"""How the i-th run looks in every picture: a colour, a dash pattern and a marker."""

from __future__ import annotations

from dataclasses import dataclass

# Four after Okabe and Ito (https://jfly.uni-koeln.de/color/) and two more that colour-blind readers tell from them,
# each with a contrast of at least 3:1 on the white and on the dark page (WCAG 2.2, 1.4.11).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc77aa", "#8877ee", "#bb3344")
DASHES = ("none", "6 3", "2 2.5", "9 3 2 3", "12 4")
_MARKERS = (
    "M{r},0A{r},{r} 0 1 1 -{r},0A{r},{r} 0 1 1 {r},0Z",
    "M-{r},-{r}H{r}V{r}H-{r}Z",
    "M0,-{w}L{w},{r}H-{w}Z",
    "M0,-{w}L{w},0L0,{w}L-{w},0Z",
    "M-{w},-{r}H{w}L0,{w}Z",
)


@dataclass(frozen=True)
class Mark:
    """The look of run number `index`; the first 30 all differ."""

    index: int

    @property
    def colour(self) -> str:
        """Hexadecimal RGB."""
        return COLOURS[self.index % len(COLOURS)]

    @property
    def dash(self) -> str:
        """An SVG `stroke-dasharray`."""
        return DASHES[self.index % len(DASHES)]

    def line(self, path: str) -> str:
        """An SVG path in this look."""
        return (
            f'<path d="{path}" fill="none" stroke="{self.colour}" stroke-width="1.8" stroke-dasharray="{self.dash}" '
            'stroke-linejoin="round"/>'
        )

    def faint(self, path: str) -> str:
        """An SVG path behind the line: what the line smooths."""
        return f'<path d="{path}" fill="none" stroke="{self.colour}" stroke-width="0.9" stroke-opacity="0.28"/>'

    def area(self, path: str) -> str:
        """A closed SVG path behind the line: how far its seeds lie apart."""
        return f'<path d="{path}" fill="{self.colour}" fill-opacity="0.16"/>'

    def dot(self, x: float, y: float, tip: str = "", scale: float = 1.0) -> str:
        """The marker at a point; `tip`, escaped already, shows under a pointer."""
        edge = ' stroke="var(--page, #fff)" stroke-width="0.5"' if scale > 1 else ""
        return self._marker(x, y, scale, f'fill="{self.colour}"{edge}', tip)

    def seed(self, x: float, y: float, tip: str = "") -> str:
        """The marker of one seed among others: the same shape, hollow."""
        return self._marker(x, y, 1.0, f'fill="{self.colour}" fill-opacity="0.25" stroke="{self.colour}"', tip)

    def _marker(self, x: float, y: float, scale: float, look: str, tip: str) -> str:
        shape = _MARKERS[self.index % len(_MARKERS)].format(r=2.6, w=3.6)
        title = f"<title>{tip}</title>" if tip else ""
        size = f" scale({scale:g})" if scale != 1 else ""
        return f'<path d="{shape}" transform="translate({x:.1f} {y:.1f}){size}" {look}>{title}</path>'

    def key(self, x: float, y: float) -> str:
        """A legend's sample of the line, 26 wide, from (x, y) on."""
        return self.line(f"M{x:.1f},{y:.1f}h26") + self.dot(x + 13, y)

    def inline(self) -> str:
        """The legend's sample as a small picture beside a name in running text."""
        return f'<svg class="key" viewBox="0 0 26 10" width="26" height="10" aria-hidden="true">{self.key(0, 5)}</svg>'
