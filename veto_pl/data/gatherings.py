r"""Sets, intervals, tuples and lists of answers: `\{1,2\}`, `(-\infty, 3]`, `(1, 2)`, `19, 46 and 82`."""

from __future__ import annotations

import re

_MOST = 20
"""Parts of a collection; one of more is compared as text."""
_AND = re.compile(r"[ ]?,?[ ]?(?<![A-Za-z])(?:and|or)(?![A-Za-z])[ ]?")
_OPEN, _CLOSE = "([{", ")]}"


def parts_of(text: str) -> tuple[str, list[str]] | None:
    r"""The brackets of a collection and its parts, or None for a text that is none.

    Example:
        >>> parts_of(r"\{1, 2\}"), parts_of(r"(-\infty, 3]"), parts_of("19, 46, and 82"), parts_of("f(1, 2)")
        (('{}', ['1', '2']), ('(]', ['-\\infty', '3']), ('', ['19', '46', '82']), None)
    """
    text = text.replace(r"\{", "{").replace(r"\}", "}").strip()
    brackets = ""
    if (text[:1] in _OPEN[:2] and text[-1:] in _CLOSE[:2]) or (text[:1] == "{" and text[-1:] == "}"):
        brackets, text = text[:1] + text[-1:], text[1:-1]
    parts = [part.strip() for part in _split(_AND.sub(", ", text))]
    whole = len(parts) > 1 or brackets == "{}"
    return (brackets, parts) if whole and all(parts) and len(parts) <= _MOST else None


def _split(text: str) -> list[str]:
    """The parts between commas outside of brackets; none where the brackets do not fit."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return [""]
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts if depth == 0 else [""]
