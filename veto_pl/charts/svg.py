"""A matplotlib figure as one short `<svg>` element in the colours of the page that it stands in."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# They stand for colours of the page, which only the browser knows.
INK, SOFT, PAPER = "#010203", "#020304", "#fdfcfb"
_PAGE = {INK: "currentColor", SOFT: "var(--soft, currentColor)", PAPER: "var(--page, #fff)"}
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_DARK = "<style>@media (prefers-color-scheme: dark) { svg { color: #e3e6e9; --page: #15181c } }</style>"


def svg_of(figure: Figure, tips: Mapping[str, Sequence[str]], title: str = "", description: str = "") -> str:
    """Return a figure as an `<svg>` element without ids, metadata and fonts of its own, the same for the same figure.

    Args:
        figure: axes that do not clip. Its artists may have names (`gid`) such as `m3-17`: class `m3`, number 17.
        tips: name of an artist -> text that shows on hover, for each of its marks in turn.
        title: names the picture for screen readers.
        description: says in words what is seen; a picture without is an ornament, and hidden from screen readers.
    """
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has fonts for all scripts
        figure.savefig(written, format="svg", transparent=True, metadata=_NO_METADATA)
    drawn = ElementTree.fromstring(written.getvalue())
    shapes = {shape.attrib["id"]: shape for shape in drawn.iter(f"{_SVG}path") if "id" in shape.attrib}
    width, height = drawn.attrib["viewBox"].split()[2:]
    kind = {"class": "chart", "role": "img"} if description else {"class": "key", "aria-hidden": "true"}
    sizes = {} if description else {"width": width, "height": height}
    looks = {"viewBox": f"0 0 {width} {height}", "style": "stroke-linejoin: round"}
    svg = Element(f"{_SVG}svg", {**kind, **sizes, **looks})
    for tag, text in {"title": title, "desc": description}.items() if description else ():
        ElementTree.SubElement(svg, f"{_SVG}{tag}").text = text
    svg.extend(list(_tidied(drawn, shapes, tips)))
    ElementTree.register_namespace("", _SVG[1:-1])
    text = ElementTree.tostring(svg, encoding="unicode")
    for stand_in, colour in _PAGE.items():
        text = text.replace(stand_in, colour)
    return text


def standalone(svg: str) -> str:
    """Return an `<svg>` element as the text of a file, which follows the reader's dark mode by itself."""
    return svg.replace("<desc>", f"{_DARK}<desc>", 1).replace("<svg ", '<svg font-family="sans-serif" ', 1) + "\n"


def _tidied(parent: Element, shapes: Mapping[str, Element], tips: Mapping[str, Sequence[str]]) -> Iterator[Element]:
    """Yield the visible children of an element; groups are dissolved unless a page can hide them."""
    for child in parent:
        tag = child.tag.removeprefix(_SVG)
        if tag == "g":
            inner = list(_tidied(child, shapes, tips))
            name = child.get("id", "")
            if re.fullmatch(r"m\d+-\d+", name):
                group = Element(f"{_SVG}g", {"class": name.partition("-")[0]})
                group.extend(inner)
                _add_tips(group, tips.get(name, ()))
                inner = [group] if inner else []
            yield from inner
        elif tag == "text":
            yield _text(child)
        elif tag == "use":
            yield _path(shapes[child.attrib[_LINK][1:]], child)
        elif tag == "path" and "d" in child.attrib and child.get("style") != "fill: none":  # no empty lines, no grounds
            yield _path(child)


def _path(shape: Element, use: Element | None = None) -> Element:
    path = Element(f"{_SVG}path", {"d": _short(" ".join(shape.attrib["d"].split()))})
    style = (use if use is not None and "style" in use.attrib else shape).get("style", "")
    if use is not None:
        path.set("transform", _short(f"translate({use.get('x', 0)} {use.get('y', 0)})"))
    path.set("style", _short(style))
    return path


def _text(drawn: Element) -> Element:
    style = re.sub(r"font-family: [^;]*; ?", "", drawn.attrib["style"])
    turned = {} if "rotate(-0 " in drawn.attrib["transform"] else {"transform": _short(drawn.attrib["transform"])}
    place = {axis: _short(drawn.attrib[axis]) for axis in "xy"}
    text = Element(f"{_SVG}text", {**place, "style": style, **turned})
    text.text = drawn.text
    return text


def _add_tips(group: Element, tips: Sequence[str]) -> None:
    for mark, tip in zip(group, tips, strict=bool(tips)):
        ElementTree.SubElement(mark, f"{_SVG}title").text = tip


def _short(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), 2) + 0.0:g}", numbers)
