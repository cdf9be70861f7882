"""Text from outside made safe for a page."""

from __future__ import annotations

from html import escape as _escape_html

from veto_pl.charts.text import escaped, is_hidden, printable


def escape(text: str, *, keep: str = "") -> str:
    """Return `printable` text, escaped for HTML and XML, in content and in quoted attributes.

    >>> escape('<b class="x">')
    '&lt;b class=&quot;x&quot;&gt;'
    """
    return _escape_html(printable(text, keep=keep))


def visible(text: str) -> str:
    r"""Return HTML of a model's text: line feeds stay, every other hidden character is marked.

    >>> visible("1 < 2\t\n")
    '1 &lt; 2<span class="control">\\t</span>\t\n'
    """
    return "".join(_visible(c) for c in text)


def is_long(text: str) -> bool:
    """Return whether a text is so long that its box scrolls, and must be reachable by the Tab key."""
    return len(text) > 250 or text.count("\n") > 12 or len(printable(text)) > 250


def _visible(character: str) -> str:
    if character == "\n" or not is_hidden(character):
        return _escape_html(character)
    tab = "\t" if character == "\t" else ""
    return f'<span class="control">{escaped(character)}</span>{tab}'
