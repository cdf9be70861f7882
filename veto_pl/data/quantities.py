r"""Reads one written number: `$1,300.50`, `-3/4`, `1 1/2 cups`, `\frac{3}{4}`, `4 million`, `1.2 \times 10^{3}`, `45%`.

A number counts only where the text on both sides leaves it as it is: no other number, no operator, no word such as
*half* or *not*.

Everything here is a search with bounded repetition over a short text, so no text takes long and none raises.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 160
"""Characters of an answer; a longer one is prose and has no single value."""
DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"))
"""The characters that are written for a minus."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}(?![0-9,]*[0-9])|[0-9]{1,40}(?![0-9]))"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]{{1,40}}(?![0-9]))?(?!\.[0-9])|\.[0-9]{{1,40}}(?![0-9]))"
_SHORT = r"[0-9]{1,12}(?![0-9.])"
_NUMBER = (
    rf"(?:{_SHORT}[ ]{{1,2}}(?:and[ ])?{_SHORT}[ ]?/[ ]?{_SHORT}"
    rf"|(?:{_SHORT}[ ]?(?:and[ ])?)?\\frac\{{{_DECIMAL}\}}\{{{_DECIMAL}\}}"
    rf"|{_DECIMAL}[ ]?/[ ]?\$?{_DECIMAL}"
    rf"|(?:{_DECIMAL}[ ]?[x*][ ]?)?10[ ]?\^[ ]?(?:[-+]?[0-9]{{1,2}}(?![0-9])|\{{[-+]?[0-9]{{1,2}}\}})"
    rf"|{_DECIMAL}(?:[eE][-+]?[0-9]{{1,2}}(?![0-9A-Za-z]))?)"
)
_CURRENCY = "$€£¥₹"
# A minus is a sign only where it cannot be a subtraction, a range or a bullet.
_WRITTEN = re.compile(
    rf"(?:(?<![\w)}}\]%])(?P<sign>[-+]))?(?:[{_CURRENCY}][ ]?(?P<inner>[-+])?)?"
    rf"(?<![0-9])(?<![0-9]\.)(?P<size>{_NUMBER})"
)
_SCALES = {"dozen": 12, "hundred": 100, "k": 10**3, "thousand": 10**3}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_MAGNITUDE = r"(?:hundred|thousand|million|billion|trillion)"
_SCALED = re.compile(rf"[ -]?({_MAGNITUDE}|dozen)s?\b|k\b", re.IGNORECASE)
_PERCENT = re.compile(r"[ ]?(?:%|percent(?:age points?)?\b|per cent\b)", re.IGNORECASE)
_POWER = re.compile(
    r"(?<=[A-Za-z])[ ]?\^[ ]?(?:[23](?![0-9])|\{[23]\})|(?<![A-Za-z])((?:[cdkm]?m|ft|in|yd|mi)(?=[23]))[23](?!\w)"
)
_UNIT = re.compile(r"(?:[^\W\d_]|[ .,'\u2019()/;°%\"\u201d\u2033\u2032&-]|[€£¥₹$])*")
_LEAD = re.compile(r"(?:[^\W\d_]|[ .,'\u2019()$:;~≈→\"\u201c&-])*")

_WORD = r"[^\W\d_]{1,40}"
_COUNT = (
    rf"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|twenty"
    rf"|(?:thir|for|fif|six|seven|eigh|nine)ty|dozen|{_MAGNITUDE})"
)
_PART = r"(?:half|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)"
_PARTS = r"(?:halves|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s|quarters?[ ]of)"
_TIMES = r"(?:twice|double|triple|times|plus|minus|divided|multiplied|root|than|least|most)"
_NOT = r"(?:not|never|cannot|without|nor|\w{2,6}n['\u2019]t)"
_LARGER = r"(?:years?|months?|weeks?|days?|hours?|minutes?|miles?|yards?|feet|foot|pounds?|gallons?|dollars?)"
_JOINT = r"(?:of|the|a|an|and|or|to|by|as|times|plus|minus|per|out|over|point|than|x)"
# What makes another number of the one behind it, each with an example of 18 that is not 18.
_BEFORE = re.compile(
    rf"""(?ix)
    [^\s(\["'\u201c\u2018:=~≈;|>→`$%]$ | \w['\u2019]$ | [\w)}}\]][(\[]$              # A18, f(18)
  | (?: [-+*/÷^±<≤≥≠_{{] | (?<![-=])> | [!<>]= | \\[a-z]{{0,20}} ) [ (\[]{{0,4}}$    # x - 18, \log 18
  | [0-9] (?: [:,%] | ,?[ ] | (?:[ ]{_JOINT}){{1,3}}[ ] ) \(?$                       # 7:18, 7, 18, 7 of the 18
  | [0-9][ ]{_LARGER} (?:,?[ ]and)? [ ]$                                             # 5 hours and 18 minutes
  | \b{_COUNT} (?:[ ]{_JOINT}){{0,3}} [ ]$                                           # two times 18
  | \b(?: {_TIMES} | {_PART} ) (?: (?:[ ]{_WORD}){{0,3}}[ ](?:of|as|than|by|the|to) )? [ ]\(?$  # half as many as 18
  | (?: % | \bpercent ) [ ]off? (?:[ ]the)? [ ]\(?$                                  # 40% of 18
  | \b{_NOT} (?:[ ]{_WORD}){{0,2}} [ ]\(?$                                           # not equal to 18
    """
)
_REACH = 80  # characters that `_BEFORE` looks back
_OPERAND = re.compile(r"(?:[0-9)}\]%]|(?<![^\W_])[A-Za-z])[ ]?$")
# What makes another number of the one in front of it. A single letter that is no unit is a variable: 18 m, but 18 x.
_BEHIND = re.compile(
    rf"""(?x)
    ^[ ]? (?: [\^±] | [<>≤≥≠][ ] | \\(?!end)[A-Za-z] | [*+÷](?=[ ]?[\w(\\$.]) | -(?![ ]?[A-Za-z]{{2}}) )   # 18 - x
  | ^[ ]? /(?=[ ]?(?:[^A-Za-z ]|[abnxyz]\b)) | ^[abnxyz]{{1,3}}\b | ^[ ]?(?![mgshlLtdCFKWVAJNc]\b)[^\W\d_][ .)]*$
  | ^[ ](?i: plus | minus | divided | multiplied | doubled | tripled | halved | factorial | {_PARTS} )\b (?!-[a-z]{{2}})
  | ^[ ](?i: {_PART} | double | triple | twice | squared | cubed )\b (?: [ ](?:of|the)\b | (?![ -]{_WORD}) )  # 18 half
  | ^(?:[ ]{_WORD})? (?i: [ ]or[ ](?:more|less|fewer) | [ ]at[ ](?:least|most) | [ ]and[ ](?:a|one)[ ]{_PART} )\b
  | ^(?: [ ](?i:of|to|per|point|x) | (?:[ ]{_WORD})?[ ](?i:and|or|by|than|plus|minus|times) )
        [ ](?:a[ ])?(?i:{_COUNT})\b (?!-{_WORD})                                     # 18 hours or nineteen
  | ^(?:[ ]{_WORD}){{0,2}} [ ](?i:{_MAGNITUDE})\b (?!-)                              # 18 (million) two hundred
    """
)

_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
_LOWERED = str.maketrans(_RAISED, "0123456789+-")
# An em dash behind a word, or in front of a space, is punctuation.
_EM_DASH = re.compile(r"(?<=[^\W\d_])\u2014|\u2014(?=\s)")
_INVISIBLE = (0x00AD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF)
_PLAIN = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | dict.fromkeys(_INVISIBLE) | DASHES
_PLAIN |= {0x2044: "/", 0x2215: "/", 0x3002: ". "}
_SYMBOLS = {
    "times": "*", "cdot": "*", "div": "÷", "pm": "±", "approx": "≈", "sim": "≈", "ne": "≠", "neq": "≠", "le": "≤",
    "leq": "≤", "ge": "≥", "geq": "≥", "to": "→", "rightarrow": "→", "Rightarrow": "→", "implies": "→", "circ": "°",
    "degree": "°", "left": "", "right": "", "displaystyle": "", "quad": " ", "qquad": " ", "thinspace": " ",
}  # fmt: skip
_TEXT = (
    r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname|boldsymbol|bm|emph)[ ]?\{([^{}]{0,80})\}"
)
_REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\([$%€£&#_])"), r"\1"),
    (re.compile(r"(?<=[0-9])(?:,?\{?\\[,!;: ]\}?|\{,\}|[\u00a0\u2009\u202f~]|\\thinspace)(?=[0-9]{3}(?![0-9]))"), ","),
    (
        re.compile(r"(?<![0-9.,/^])[1-9][0-9]{0,2}(?:[ ][0-9]{3}){1,6}(?![0-9]|,[0-9]|[ ]?/)"),
        lambda found: found[0].replace(" ", ","),
    ),
    (re.compile(rf"(?<=-){_TEXT}"), r"\1 "),
    (re.compile(_TEXT), r" \1 "),
    (re.compile(_TEXT), r" \1 "),  # one inside another
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (
        re.compile(r"\\frac[ ]?(?:\{[ ]?([0-9.,]{1,40})[ ]?\}|([0-9]))[ ]?(?:\{[ ]?([0-9.,]{1,40})[ ]?\}|([0-9]))"),
        r"\\frac{\1\2}{\3\4}",
    ),
    (re.compile(rf"\\({'|'.join(_SYMBOLS)})(?![A-Za-z])"), lambda found: _SYMBOLS[found[1]]),
    (re.compile(r"[\u00b7\u00d7\u22c5\u2217]"), "*"),
    (re.compile(r"(?<=[0-9])[ ]?\^[ ]?\{?°\}?"), "°"),
    (re.compile(r"(?<![\w)}*])([*_]{1,3})(?=\S)([^*_\n]{1,80})\1(?![ ]?[0-9(\\$*_])"), r" \2 "),
    (re.compile(r"\\[,!;: ()\[\]]|(?<![0-9)])\*\*|\*\*(?![0-9(])|__"), " "),
    (re.compile(r"(?:√|\\sqrt)[ ]?([0-9]{1,9})|(?:√|(?<![\\\w])sqrt)[ ]?\(([^()]{1,40})\)"), r"\\sqrt{\1\2}"),
    (re.compile("π"), r"\\pi "),
    (re.compile("∞"), r"\\infty "),
    (re.compile(r"~(?![ ]?[-$.0-9])"), " "),
    (re.compile(r"(?i)\b(?:negative|minus)[ ](?=[$.0-9\\])"), "-"),
    (re.compile(rf"-\([ ]?([{_CURRENCY}]?{_DECIMAL})[ ]?\)(?![ ]?\^)"), r"-\1"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Quantity:
    """A number as it was written.

    Args:
        value: the number in front of any unit.
        percent: whether a percent sign followed.
        scale: 1, or what `k`, `dozen`, `million` or the like behind it stands for.
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


def plain(text: str) -> str:
    r"""The text with digits, signs, powers and fractions in ASCII or LaTeX, whatever characters they had.

    Example:
        >>> plain("\N{MINUS SIGN}7 m\N{SUPERSCRIPT TWO}"), plain("2\N{VULGAR FRACTION ONE HALF}")
        ('-7 m^{2}', '2\\frac{1}{2}')
    """
    if text.isascii():
        return text
    text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)
    text = re.sub(rf"[{_RAISED}]{{1,9}}", lambda power: f"^{{{power[0].translate(_LOWERED)}}}", text)
    text = re.sub("[\u00bc-\u00be\u2150-\u215e\u2189]", _fraction, text)
    return _EM_DASH.sub("; ", text).translate(_PLAIN)


def _fraction(found: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", found[0]).split("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def tidy(text: str) -> str:
    r"""The plain text with one way to write spaces, emphasis and simple LaTeX.

    Example:
        >>> tidy(r"\dfrac34\text{ cups}"), tidy(r"**\$12\,500**"), tidy(r"- 3 \times 2")
        ('\\frac{3}{4} cups', '$12,500', '- 3 * 2')
    """
    text = plain(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


def read_quantity(text: str) -> Quantity | None:
    """The single number that a tidy text states, or None where it states none, several, or a calculation.

    Example:
        >>> read_quantity("Total: $1,234.50."), read_quantity("1 1/2 cups").value, read_quantity("3 hours 20 minutes")
        (Quantity(value=Fraction(2469, 2), percent=False, scale=1), Fraction(3, 2), None)
    """
    text = _POWER.sub(r"\1", text.rstrip("$ .,;:").lstrip(" :=~≈"))
    if not text or len(text) > LONGEST:
        return None
    text = text[1:-1].strip() if text[0] == "(" and text.find(")") == len(text) - 1 else text
    found = _WRITTEN.search(text)
    if found is None or not _LEAD.fullmatch(text[: found.start()]):
        return None
    number, rest = _stated(found, text)
    return number if _UNIT.fullmatch(rest) else None


def last_quantity(line: str) -> Quantity | None:
    """The last number of a tidy line of prose; None where it is part of a calculation, a time, a list or a longer word.

    Example:
        >>> last_quantity("So 9 * 2 is 18 in all").value, last_quantity("so it is 9 * 2"), last_quantity("by 10:30")
        (Fraction(18, 1), None, None)
    """
    line = _POWER.sub(r"\1", line)
    numbers = list(_WRITTEN.finditer(line))
    if not numbers:
        return None
    number, rest = _stated(numbers[-1], line)
    return None if re.search(r"[0-9]", rest) else number


def _stated(found: re.Match[str], text: str) -> tuple[Quantity | None, str]:
    """The number with its scale and percent sign, None where the text on either side alters it, and what follows it."""
    before, rest = text[: found.start()], text[found.end() :]
    scaled = _SCALED.match(rest)
    rest = rest[scaled.end() :] if scaled else rest
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    value, sign, inner = _value(found["size"]), found["sign"] or "", found["inner"] or ""
    altered = _BEFORE.search(before[-_REACH:]) or _BEHIND.search(rest) or (sign and _OPERAND.search(before))
    if value is None or altered or (sign and inner) or rest.lstrip()[:1].isnumeric():  # `5 万` is 50000
        return None, rest
    scale = _SCALES[(scaled[1] or "k").lower()] if scaled else 1
    return Quantity(-value if "-" in sign + inner else value, percent is not None, scale), rest


def _value(size: str) -> Fraction | None:
    size = re.sub(r"[,$]|and ", "", size).replace(r"\frac", " ").replace("}{", "/").strip("{}").replace("{", "")
    try:
        if "/" in size:
            left, bottom = size.split("/")
            whole, _, top = left.strip().rpartition(" ")
            return Fraction(whole.strip() or 0) + Fraction(top) / Fraction(bottom.strip())
        number, _, power = re.sub(r"(?:^|[ ]?[x*][ ]?)10[ ]?\^[ ]?|E", "e", size).partition("e")
        return Fraction(number or 1) * Fraction(10) ** int(power or 0)
    except (ValueError, ZeroDivisionError):
        return None
