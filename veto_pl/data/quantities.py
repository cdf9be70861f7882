r"""Reads one written number: `$1,300.50`, `-3/4`, `1 1/2 cups`, `\frac{3}{4}`, `4 million`, `1.2 \times 10^{3}`, `45%`.

Everything here is a search with bounded repetition over a short text, so no text takes long and none raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 160
"""Characters of an answer; a longer one is prose and has no single value."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}(?![0-9,]*[0-9])|[0-9]{1,40}(?![0-9]))"
DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]{{1,40}}(?![0-9]))?(?!\.[0-9])|\.[0-9]{{1,40}}(?![0-9]))"
_SHORT = r"[0-9]{1,12}(?![0-9.])"
NUMBER = (
    rf"(?:{_SHORT}[ ]{{1,2}}(?:and[ ])?{_SHORT}[ ]?/[ ]?{_SHORT}"
    rf"|{DECIMAL}[ ]?/[ ]?\$?{DECIMAL}"
    rf"|{DECIMAL}(?:[ ]?[x*][ ]?10[ ]?\^[ ]?\{{?[-+]?[0-9]{{1,2}}\}}?|[eE][-+]?[0-9]{{1,2}}(?![0-9A-Za-z]))?)"
)
_CURRENCY = "$€£¥₹"
_SIGNED = re.compile(rf"(?P<sign>[-+]?)[{_CURRENCY}]?[ ]?(?P<inner>[-+]?)(?P<size>{NUMBER})")
_SCALE = {"hundred": 10**2, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALED = re.compile(r"[ -]?(hundred|thousand|million|billion|trillion)s?\b|k\b", re.IGNORECASE)
_PERCENT = re.compile(r"[ ]?(?:%|percent(?:age points?)?\b|per cent\b)", re.IGNORECASE)
_POWER = re.compile(r"(?<=[A-Za-z])[ ]?(?:\^[ ]?(?:[23]|\{[23]\})|[23](?![0-9A-Za-z])|[²³])")
_UNIT = re.compile(r"(?:[^\W\d_]|[ .,'\u2019()/;°%\"\u2033\u2032&-]|[€£¥₹$])*")
_UNIT_LETTERS = frozenset("mgshlLtdCFKWVAJNc")
# Words that make another number of the one before or behind them.
_CHANGES = re.compile(
    r"\b(?:plus|minus|divided|multiplied|squared|cubed|factorial|or|to|half|halves|thirds?|fourths|fifths|point|versus"
    r"|root|twice|double|triple|not|than|least|most|hundred|thousand|million|billion|trillion|negative|between)\b",
    re.IGNORECASE,
)
# A minus counts as a sign only where it cannot be a subtraction, a range or a bullet.
_LAST = re.compile(rf"(?:(?<![\w)])-[{_CURRENCY}]?|[{_CURRENCY}]-?)?(?<![0-9])(?<![0-9]\.){NUMBER}")
_UNFINISHED = re.compile(r"[0-9][,:]$|[0-9)%][ ]?[-+*÷/^x][ (-]{0,8}$|[\w)}][ ]?[*÷/^][ (-]{0,8}$|[{-]$|\w\($|\w_?$")
_BEHIND = re.compile(rf"(?:{_SCALED.pattern})?(?:{_PERCENT.pattern})?", re.IGNORECASE)
_BEFORE = re.compile(r"(?:[^\W\d_]|[ .,'\u2019()$:;~≈\"&-])*")
_REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"[\u2212\u2012\u2013\uFE63\uFF0D]"), "-"),
    (re.compile(r"(?<=[0-9])(?:,?\\[,! ]|[\u00a0\u2009\u202f]|\{,\}(?=[0-9])|\\thinspace)(?=[0-9]{3})"), ","),
    (re.compile(r"(?<=[0-9])(?=\\[dt]?frac|[½¼¾])"), " "),
    (re.compile(r"\\[dt]?frac[ ]?\{([0-9.,]{1,40})\}[ ]?\{([0-9.,]{1,40})\}"), r"\1/\2 "),
    (re.compile(r"\\[dt]?frac[ ]?([0-9])[ ]?([0-9])"), r"\1/\2 "),
    (re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname)[ ]?\{([^{}\\]{0,80})\}"), r" \1 "),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (
        re.compile(r"\\(?:left|right|displaystyle|quad)(?![A-Za-z])|\\[,!;: ()\[\]]|(?<![0-9)])\*\*|\*\*(?![0-9(])|__"),
        " ",
    ),
    (re.compile(r"\\([$%€£])"), r"\1"),
    (re.compile(r"(?<=[0-9])[ ]?\^?[ ]?\{?\\(?:circ|degree)\}?"), "°"),
    (re.compile(r"\\times(?![a-z])|\\cdot(?![a-z])|[\u00b7\u00d7\u22c5\u2217]"), "*"),
    (re.compile(r"[½¼¾]"), lambda found: {"½": "1/2", "¼": "1/4", "¾": "3/4"}[found[0]]),
    (re.compile(r"(?i)\b(?:negative|minus)[ ](?=[$.0-9])"), "-"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Quantity:
    """A number as it was written.

    Args:
        value: the number in front of any unit.
        percent: whether a percent sign followed.
        scale: 1, or what `k`, `thousand`, `million` or the like behind it stands for.
    """

    value: Fraction
    percent: bool = False
    scale: int = 1

    def answers(self, expected: Quantity) -> bool:
        """Whether this number is the expected one.

        What the expected number does not name is a unit: 40% answers 40 and 4 million answers 4, as GSM8K's references
        want it. What it does name counts: 4 does not answer 4 million, and 0.4 answers 40%.
        """
        if expected.scale == 1 and self.value == expected.value:
            return True
        size, wanted = self.value * self.scale, expected.value * expected.scale
        return size == wanted or (expected.percent and not self.percent and size * 100 == wanted)


def tidy(text: str) -> str:
    r"""The text with one way to write signs, spaces and simple LaTeX.

    Example:
        >>> tidy(r"\dfrac{3}{4}\text{ cups}"), tidy(r"**\$12\,500**"), tidy("\N{MINUS SIGN}7")
        ('3/4 cups', '$12,500', '-7')
    """
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


def read_quantity(text: str) -> Quantity | None:
    """The single number that a tidy text states, or None where it states none, several, or a calculation.

    Example:
        >>> read_quantity("Total: $1,234.50."), read_quantity("1 1/2 cups").value, read_quantity("3 hours 20 minutes")
        (Quantity(value=Fraction(2469, 2), percent=False, scale=1), Fraction(3, 2), None)
    """
    text = text.rstrip("$ .,;:").lstrip(" :=~≈")
    if not text or len(text) > LONGEST:
        return None
    text = text[1:-1].strip() if text[0] == "(" and text.find(")") == len(text) - 1 else text
    start = _start(text)
    found = None if start is None else _SIGNED.match(text, start)
    if found is None or (found["sign"] and found["inner"]):
        return None
    value = _value(found["size"])
    return None if value is None else _with_unit(value, "-" in found["sign"] + found["inner"], text[found.end() :])


def _start(text: str) -> int | None:
    """Where the number begins, its sign included; None where the words before it change it."""
    digit = re.search(r"(?<!\.)\.?[0-9]", text)
    if digit is None:
        return None
    before = text[: digit.start()].rstrip(f"{_CURRENCY}+-")
    glued = before[-1:].isalnum() or before[-1:] in (")", "'", "\u2019")
    if glued or _CHANGES.search(before) or not _BEFORE.fullmatch(before) or re.search(r"[\w-][ ]?\([ ]?$", before):
        return None
    return len(before)


def _value(size: str) -> Fraction | None:
    size = size.replace(",", "").replace("$", "")
    try:
        if "/" in size:
            left, bottom = size.split("/")
            whole, _, top = left.strip().replace("and ", "").rpartition(" ")
            return Fraction(whole or 0) + Fraction(top) / Fraction(bottom.strip())
        number, _, power = re.sub(r"[ ]?[x*][ ]?10[ ]?\^[ ]?", "e", size).strip("}").replace("{", "").partition("e")
        number, _, power = (number, "", power) if power else number.partition("E")
        return Fraction(number) * Fraction(10) ** int(power or 0)
    except (ValueError, ZeroDivisionError):
        return None


def _with_unit(value: Fraction, negative: bool, rest: str) -> Quantity | None:
    """The number with its scale and percent sign; None where the text behind it is more than a unit."""
    scaled = _SCALED.match(rest)
    if scaled is not None:
        rest = rest[scaled.end() :]
    percent = _PERCENT.match(rest)
    rest = _POWER.sub("", rest[percent.end() :] if percent else rest)
    if _CHANGES.search(rest) or not _UNIT.fullmatch(rest) or _continues(rest):
        return None
    scale = _SCALE[(scaled[1] or "k").lower()] if scaled else 1
    return Quantity(-value if negative else value, percent is not None, scale)


def _continues(rest: str) -> bool:
    """Whether the text behind a number makes another number of it: `5x`, `5 - x`, `5 and a half`."""
    letter = rest.strip(" .)")
    variable = len(letter) == 1 and letter.isalpha() and letter not in _UNIT_LETTERS
    return variable or re.match(r"[ ]and a\b|[ ]?-(?![A-Za-z]{2})", rest) is not None


def last_quantity(line: str) -> Quantity | None:
    """The last number of a tidy line of prose; None where it is part of a calculation, a time, a list or a longer word.

    Example:
        >>> last_quantity("So 9 * 2 is 18 in all").value, last_quantity("so it is 9 * 2"), last_quantity("by 10:30")
        (Fraction(18, 1), None, None)
    """
    numbers = list(_LAST.finditer(line))
    if not numbers:
        return None
    found = numbers[-1]
    before, rest = line[: found.start()], line[found.end() :]
    if re.search(r"[0-9]", rest) or _UNFINISHED.search(before) or re.match(r"[xyznab]\b|[ ]and a\b", rest):
        return None
    behind = _BEHIND.match(rest)
    return read_quantity(found[0] + (behind[0] if behind else ""))
