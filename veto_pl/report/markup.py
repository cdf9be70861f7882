"""Text from outside made safe to show: escaped for HTML and XML, and with nothing invisible in it."""

from __future__ import annotations

import unicodedata
from html import escape as _escape_html

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Joiners hold emoji and Indic clusters together; both noncharacters are illegal in XML.
_JOINERS = "\u200c\u200d"
_ILLEGAL = "\ufffe\uffff"


def _is_hidden(character: str) -> bool:
    return character in _ILLEGAL or (unicodedata.category(character) in _HIDDEN and character not in _JOINERS)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with an escape such as `\x1b` in place of each control, format and surrogate character.

    Args:
        text: anything, lone surrogates included.
        keep: control characters that stay as they are.

    Returns:
        Text that can be written as UTF-8 and parsed as XML (for `keep` within tab and line feed).

    >>> printable("a\x1b[1m\u202eb")
    'a\\x1b[1m\\u202eb'
    """
    return "".join(c if c in keep or not _is_hidden(c) else _escaped(c) for c in text)


def escape(text: str, *, keep: str = "") -> str:
    """`printable` text, escaped for HTML and XML, in content and in quoted attributes.

    >>> escape('<b class="x">')
    '&lt;b class=&quot;x&quot;&gt;'
    """
    return _escape_html(printable(text, keep=keep))


def visible(text: str) -> str:
    r"""HTML of a model's text: line feeds stay, every other hidden character is marked.

    >>> visible("1 < 2\t\n")
    '1 &lt; 2<span class="control">\\t</span>\t\n'
    """
    return "".join(_visible(c) for c in text)


def minus(text: str) -> str:
    """The text of a number, with a minus sign where it starts with a hyphen."""
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def tab_stop(text: str) -> str:
    """The attribute by which the Tab key reaches a text that is so long that its box scrolls; else nothing."""
    is_long = len(text) > 250 or text.count("\n") > 12 or len(printable(text)) > 250
    return ' tabindex="0"' if is_long else ""


def _visible(character: str) -> str:
    if character == "\n" or not _is_hidden(character):
        return _escape_html(character)
    tab = "\t" if character == "\t" else ""
    return f'<span class="control">{_escaped(character)}</span>{tab}'
