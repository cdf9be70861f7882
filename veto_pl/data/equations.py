r"""Takes an equation apart: `x = 5` says 5 of `x`, `9 - 4 = 5` says 5, and `2x + 3y = 12` is an equation and not 12."""

from __future__ import annotations

import re

_SPLIT = re.compile(r"(?<![<>!])=|≈")
# `x = 3, y = 4`
_SEVERAL = re.compile(r"(?:[,;]|\band|\bor)[ ]?[A-Za-z]\w{0,9}[ ]?=")
_SYMBOL = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]{2,10})(?:_(?:\w|\{\w{1,9}\}))?|[A-Za-z]\([A-Za-z]\)")
_NAME = re.compile(r"(?!(?:[xyz]{2,4}|[a-z]{2}|[a-c]{3})$)[A-Za-z\\ ]*")
_MEMBER = re.compile(r"(?:([A-Za-z])[ ]?)(?:\\in(?![A-Za-z])|∈)[ ]?(?=[\[({\\])")
_COMMAND = re.compile(r"\\[A-Za-z]+|\b(?:sin|cos|tan|log|ln|exp|sqrt)\b")
_ANY_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:[xyz]+|sin|cos|tan|log|ln|exp|sqrt)\b)[A-Za-z]{2,}")
_MATHEMATICS = re.compile(r"(?:\\[A-Za-z]{1,10}|[0-9A-Za-z]|[-+*/^(){}_., =])+")
_TIMES = re.compile(r"(?<=[0-9)])[ ]?x[ ]?(?=[0-9.($\\])")
_WORD = re.compile(r"(?i)[a-z]{4,}|(?=[a-z]*[eiouy])(?![xyz]+\b)[a-z]{3,}")
_UNIT = re.compile(r"[0-9][ ]([A-Za-z])")


def stated(text: str) -> tuple[str, str]:
    r"""The value that an equation gives to a name, and the name; the whole text and no name where it gives none.

    A side is taken off only where another is a mere name, or where nothing in the equation is a variable.

    Example:
        >>> stated("x = 5"), stated("9 - 4 = 5"), stated("3x-y+13=0")
        (('5', 'x'), ('5', ''), ('3x-y+13=0', ''))
        >>> stated(r"x \in [-2,7]"), stated("A = s^2 = 25"), stated("x+y = 5")
        (('[-2,7]', 'x'), ('25', 'A'), ('x+y = 5', ''))
    """
    if member := _MEMBER.match(text):
        return text[member.end() :], member[1]
    if (equation := equation_at_end(text)) is not None:
        return equation, ""
    sides = [side.strip() for side in _SPLIT.split(text)]
    if len(sides) == 1 or not sides[-1] or _SEVERAL.search(text):
        return text, ""
    values = [side for side in sides if not _is_name(side)]
    ends_in_a_name = _is_name(sides[0]) or _is_name(sides[-1])
    if not values or (len(values) > 1 and not ends_in_a_name and _has_variables(text, sides[-1])):
        return text, ""
    return values[-1], next((side for side in sides if _SYMBOL.fullmatch(side)), "")


def equation_at_end(line: str) -> str | None:
    r"""The equation that a line of words ends in, or None where it ends in a value or a calculation.

    Example:
        >>> equation_at_end("So the line is 3x - y = -13."), equation_at_end("She has 9 - 4 = 5 kg")
        ('3x - y = -13', None)
    """
    words = [word.end() for word in _ANY_WORD.finditer(line)]
    if not words:
        return None
    value, _ = stated(line[words[-1] :].strip(" .,:;$"))
    return value if is_equation(value) and _MATHEMATICS.fullmatch(value) else None


def is_formula(text: str) -> bool:
    r"""Whether there is no word in a text but `and` and `or`.

    Example:
        >>> is_formula(r"(-\infty, 3]"), is_formula("19, 46, and 82"), is_formula("So it is 3")
        (True, True, False)
    """
    return not _ANY_WORD.search(re.sub(r"\b(?:and|or)\b", " ", text))


def is_equation(text: str) -> bool:
    """Whether a text has two sides with one sign between them."""
    return len(_SPLIT.split(text)) == 2 and "≈" not in text


def _is_name(side: str) -> bool:
    return bool(_NAME.fullmatch(side) or _SYMBOL.fullmatch(side))


def _has_variables(text: str, last: str) -> bool:
    """Whether letters stand for numbers: not in prose, and not where they are the unit of the last side, as `m`."""
    letters = _TIMES.sub("*", _COMMAND.sub(" ", text))
    if _WORD.search(letters):
        return False
    unit = _UNIT.search(last)
    if unit:
        letters = re.sub(rf"(?<=[0-9]) {unit[1]}\b", " ", letters)
    return bool(re.search(r"[A-Za-z]", letters))
