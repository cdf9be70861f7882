"""Text and numbers as they are shown: with nothing invisible in them, and no more digits than say something."""

from __future__ import annotations

import math
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Joiners hold emoji and Indic clusters together; both noncharacters are illegal in XML.
_JOINERS = "\u200c\u200d"
_ILLEGAL = "\ufffe\uffff"


def is_hidden(character: str) -> bool:
    """Return whether a character leaves no mark on a page, or is illegal in XML."""
    return character in _ILLEGAL or (unicodedata.category(character) in _HIDDEN and character not in _JOINERS)


def escaped(character: str) -> str:
    """Return the escape by which Python writes a character."""
    return character.encode("unicode_escape").decode("ascii")


def printable(text: str, *, keep: str = "") -> str:
    r"""Return the text with an escape such as `\x1b` in place of each control, format and surrogate character.

    Args:
        text: anything, lone surrogates included.
        keep: control characters that stay as they are.

    Returns:
        Text that can be written as UTF-8 and parsed as XML (for `keep` within tab and line feed).

    >>> printable("a\x1b[1m\u202eb")
    'a\\x1b[1m\\u202eb'
    """
    return "".join(c if c in keep or not is_hidden(c) else escaped(c) for c in text)


def minus(text: str) -> str:
    """Return the text of a number, with a minus sign where it starts with a hyphen."""
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def number(value: float) -> str:
    """Return a value with three significant digits; whole numbers and thousands in full.

    >>> number(0.5), number(58.04), number(12345.6), number(2e-5), number(7)
    ('0.500', '58.0', '12,346', '2.0e-5', '7')
    """
    return minus(_number(value))


def _number(value: float) -> str:
    if isinstance(value, int) or (math.isfinite(value) and 1000 <= abs(value) < 1e15):
        return f"{value:,.0f}"
    if not math.isfinite(value) or value == 0:
        return f"{value + 0.0:g}"  # 0 without a sign
    if abs(value) < 1e-3 or abs(value) >= 1000:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:#.3g}".rstrip(".")


def cell(value: str | float | None) -> str:
    """Return what a table shows: a number rounded, text as it is, and a dash for None."""
    if value is None:
        return "—"
    return value if isinstance(value, str) else number(value)


def for_terminal(cell: str) -> str:
    """Return a number with a hyphen, for terminals whose encoding lacks the minus sign."""
    return cell.replace("\N{MINUS SIGN}", "-")


def tick_label(value: float) -> str:
    """Return a round number with the digits that it has, in powers of ten below 1e-4 and from 1e6 on.

    >>> tick_label(0.25), tick_label(-2000.0), tick_label(2e-5), tick_label(1e7)
    ('0.25', '−2,000', '2e-5', '1e7')
    """
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return minus(f"{value:,.10g}")
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    return minus(f"{float(mantissa):g}e{int(exponent)}")
