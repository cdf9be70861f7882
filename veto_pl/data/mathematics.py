r"""Where a worked answer ends, and whether it is the expected one.

The answer of a text is looked for in this order:

1. behind the last `####` that a number or a formula follows, GSM8K's own mark;
2. in the last `\boxed{...}`, or behind the last "answer is", "answer:" or "answer =", whichever comes later;
3. in the last line with a digit: the formula between its last dollars, all of it where there is no word in it, or the
   equation that it ends in; else its last number, as `LastNumber` reads it.

Notes for a calculator, `<<9*2=18>>`, are left out. A mark decides even where its content states no answer: nothing
earlier in the text is tried instead. Each search has bounded repetition, so no text takes long.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

from veto_pl.data.formulas import same_formula
from veto_pl.data.rewards import DASHES, final_number
from veto_pl.seams import Example, Reward

WINDOW = 20_000
"""Characters of a text that are read, from its end."""
LONGEST = 160
"""Characters of an answer; a longer one is prose."""
_AT_ONCE = min(4, os.cpu_count() or 1)
"""Processes that compare the formulas of a batch."""

_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")
_MARK = re.compile(r"####(?!#)[ \t]*(?![ \t]|[0-9]{1,2}[.)]\s+[^\W\d])([^\n#<]{1,400})")
_DIRECT = re.compile(r"(?:\W|_){0,16}(?:[A-Za-z] ?=(?:\W|_){0,8})?(?:[0-9]|(?<=\\)[A-Za-z])")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z]) {0,3}")
_PHRASE = re.compile(
    r"\banswer\b[*_]{0,3}\s{0,2}(?:(?:is|was|equals|would be|will be|should be)\b[*_]{0,3}:?|[:=])[*_]{0,3}"
    r"(?:\s{0,3}\n[ \t]{0,3}(?:[-*][ \t]{1,3})?|[ \t]{0,3})(?:(?:\\\[|\$\$)\s{0,3})?",
    re.IGNORECASE,
)
# The rest of a sentence, words or a calculation in brackets, `because`.
_EXPLANATION = re.compile(
    r"[.;!?](?=\s|$)|,\s(?=[A-Za-z])(?!and\b|or\b|[A-Za-z]\s?=)|\s-\s(?=[A-Za-z]{2})|\s(?:because|since|as|which|so)\b"
    r"|(?<![-+*/=^])\s\((?=[^()\\]{0,80}(?:[A-Za-z]{2}|[0-9] ?[-+*/=])[^()\\]{0,80}\))"
)
_BETWEEN_DOLLARS = re.compile(r"\$(?!\s)((?:\\\$|[^$\n]){1,400})(?<!\s)\$(?![0-9])|\\\((.{1,400}?)\\\)")
_EQUATION = re.compile(
    r"(?:(?<=[^\W\d_] )|^|: )(?=[^=]*[a-z])(?:[-+*/^() 0-9]|(?<![A-Za-z])[a-z](?![A-Za-z]))+=[-+*/^() 0-9.]+$"
)
_LETTER_OF_A_CHOICE = re.compile(r"\(?([A-J])\)?")
_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]{2,10})(?:_(?:\w|\{\w{1,9}\}))?|[A-Za-z]\([A-Za-z]\)"
    r"|(?![xyz]+$|[abc]+$)[A-Za-z]{3}[A-Za-z ]*"
)
_EQUALS = re.compile(r"(?<![<>!])=")
_TEXT = re.compile(r"\\(?:text|math|mbox)[a-z]{0,6} ?\{([^{}]{0,80})\}")
_NO_WORDS = re.compile(
    r"\\(?:begin|end)\{[a-z]+\}|\\[a-zA-Z]+|\b(?:[xyz]+|[abc]+|sin|cos|tan|cot|sec|csc|log|ln|exp)\b"
)
_WRITTEN_WITH_A_BASE = re.compile(r"[0-9A-F]+_\{?[0-9]+\}?")
# A number that stands alone, but for currency, a unit, and words that leave it as it is.
_NUMBER = re.compile(
    r"(?P<before>(?:[^\W\d_]|[ ,'(:;~≈\"])*)(?<![A-Za-z])(?<!\w\()(?P<sign>-? ?[$€£¥₹]? ?-?)"
    r"(?P<size>(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?|\.[0-9]{1,40})(?:[eE]-?[0-9]{1,2}|/[0-9]{1,40})?)"
    r"(?P<behind>(?:[^\W\d_]|[ .,'()/;\"&€£%-]|(?<=[a-z])\^?\{?[23]\}?(?![0-9]))*)"
)
_ALTERED_BEFORE = re.compile(
    r"(?:\b(?:not|never|than|least|most|half|third|quarter|twice|double|triple|times|plus|minus|root)|n't)\b"
    r"(?!.*(?:\b(?:is|are|was)\b|:))"
)
_ALTERED_BEHIND = re.compile(
    r"^(?:[abnxyz]{1,3}\b| ?(?![mgshlLtdCFKWVAJN]\b)[a-zA-Z]\b[ .)]*$| ?\(| ?/ ?(?![a-z]{2}|[hsdlm]\b)| ?-(?![a-z]{2}))"
    r"| (?:plus|minus|times (?!as)|divided|multiplied|doubled|tripled|squared|cubed|halves|thirds|quarters of)\b"
    r"(?!-[a-z])"
    r"| \w+ (?:hundred|thousand)\b"
    r"| (?:or|and an?) (?:more|less|fewer|half|third|quarter|\w+teen|\w+ty)\b"
)
_SIGNS = {"\u00b7": "*", "\u00d7": "*", "\u22c5": "*", "\u00f7": "/", "\u2044": "/"}
_SIGNS |= {"\u03c0": r"\pi ", "\u221e": r"\infty ", "\u221a": r"\sqrt ", "\u222a": r"\cup "}
_ONE_WAY_TO_WRITE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[0-9])(?:,?\\[,!;:] ?|\{,\}|\{\\,\})(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\(?:left|right|displaystyle|[,!;:()\[\]])|\*\*|__|[*`]$", ""),
        (r"(?<!\\)\\([$%&#_])", r"\1"),
        (r"\^ ?\{?(?:\\circ|°)\}?|\\degree|°", ""),
        (r"~|(?<!\\)\\ |\\q?quad|\s+", " "),
        (r"\s*,?\s*(?:\\text ?\{)?\s*\b(?:and|or)\b\s*\}?\s*(?=[-0-9\\$])", ", "),
        (r"(?<=[0-9]) ?(?:x|\\times) ?(?=[0-9(])", "*"),
        (r"\\sqrt ?([0-9]+)", r"\\sqrt{\1}"),
        (r"(?i)\b(?:negative|minus) (?=[$.0-9\\])", "-"),
        (r"(?<=[0-9)}]) ?\((?=[0-9])", "*("),  # math-verify reads `2(3)` as 5
    )
)


def final_answer(text: str) -> str | None:
    r"""Return what a text says at the place of its answer, or None where it has no such place.

    Example:
        >>> final_answer("9 * 2 = 18\n#### 18"), final_answer("It is 3. So \\boxed{\\frac{1}{2}}.")
        ('18', '\\frac{1}{2}')
        >>> final_answer("The answer is $1,200 per year, not 5."), final_answer("no idea")
        ('1,200 per year', None)
    """
    text = _CALCULATION.sub("", _plain(text[-WINDOW:]))
    for body in reversed(_MARK.findall(text)):
        if _DIRECT.match(body):
            return _boxed(body) or _said(body)
    boxes, (place, phrase) = list(_BOX.finditer(text)), _phrase(text)
    if boxes and boxes[-1].start() >= place:
        return _boxed(text[boxes[-1].start() :]) or ""
    return phrase if place >= 0 else _unmarked(text)


def same_answer(expected: str, given: str) -> bool:
    r"""Return whether two answers are the same number, text, formula or equation.

    Example:
        >>> same_answer("18", "$18.00"), same_answer(r"\frac{x}{2}", r"\frac{1}{2}x"), same_answer("3x-y+13=0", "0")
        (True, True, False)
    """
    expected, given = _tidy(expected), _tidy(given)
    (wanted, name), (said, other) = _stated(expected), _stated(given)
    if name and other and name != other:
        return False
    one, two = _number(wanted), _number(said, among_words=True)
    if one is not None and two is not None:
        return two == one or ("%" in wanted and "%" not in said and two * 100 == one)
    if (dense := _dense(said)) and dense == _dense(wanted):
        return True
    if _is_equation(wanted) != _is_equation(said):
        wanted, said = expected, given
    return _comparable(wanted, said) and same_formula(wanted, said)


def _comparable(wanted: str, said: str) -> bool:
    """Return whether math-verify may be asked: it takes words for products, and a side for an equation."""
    both = f"{wanted} ; {said}"
    if (
        _is_equation(wanted) != _is_equation(said)
        or len(both) > 2 * LONGEST
        or re.search(r"(?<![_^])[0-9] [0-9]", both)
    ):
        return False
    words = re.search(r"[A-Za-z]{3,}", _NO_WORDS.sub(" ", _TEXT.sub("", both)))
    return not words and not (_WRITTEN_WITH_A_BASE.fullmatch(wanted) and _WRITTEN_WITH_A_BASE.fullmatch(said))


def _phrase(text: str) -> tuple[int, str]:
    """Find the last sentence that names an answer: a number, a formula or a letter. Return its place and the answer."""
    for found in reversed(list(_PHRASE.finditer(text))):
        body = text[found.end() : found.end() + 400].partition("\n")[0]
        said = _said(body)
        if _BETWEEN_DOLLARS.match(body) or re.search(r"[0-9\\]", said) or _LETTER_OF_A_CHOICE.fullmatch(said):
            return found.start(), said
    return -1, ""


def _said(body: str) -> str:
    """Return what a line states before it explains it."""
    if formula := _BETWEEN_DOLLARS.match(body):
        return formula[1] or formula[2]
    return _EXPLANATION.split(body.strip(" `*_:"), maxsplit=1)[0].strip(" `*_$")


def _boxed(text: str) -> str | None:
    """Return the content of the first box, or None where there is none, or none that ends."""
    box = _BOX.search(text)
    if box is None:
        return None
    body = text[box.end() : box.end() + 400]
    if not body.startswith("{"):  # `\boxed 18`
        return re.split(r"[$\n]", body, maxsplit=1)[0]
    depth = 0
    for place, character in enumerate(body):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return body[1:place]
    return None


def _unmarked(text: str) -> str | None:
    """Return the answer that the last line with a digit ends in."""
    line = next((line.strip() for line in reversed(text.splitlines()) if re.search(r"[0-9]", line)), "")
    line = re.sub(r"^(?:[-*\u2022]\s+|#+\s*)", "", line)[-400:].rstrip(".")
    formulas = list(_BETWEEN_DOLLARS.finditer(line))
    if formulas and not re.search(r"[0-9]", line[formulas[-1].end() :]):
        return formulas[-1][1] or formulas[-1][2]
    if line and not re.search(r"[A-Za-z]{2,}", _NO_WORDS.sub(" ", _TEXT.sub("", line))):
        return line
    if equation := _EQUATION.search(line):
        return equation[0]
    line = _tidy(re.sub(r"(?<=m)\^?\{?[23](?:\}|\b)", "", line))  # 5 m^2
    number = final_number(line)
    stated, *explained = _EXPLANATION.split(line, maxsplit=1)
    alone = _NUMBER.fullmatch(line if re.search(r"[0-9]", "".join(explained)) else stated)
    return None if number is None or (alone and _is_altered(alone)) else f"{number:f}"


def _stated(text: str) -> tuple[str, str]:
    r"""Return the value that an equation gives to a name, and the name; the whole text and no name where it gives none.

    Example:
        >>> _stated("x = 5"), _stated("9 - 4 = 5"), _stated("3x-y+13=0"), _stated("A = s^2 = 25")
        (('5', 'x'), ('5', ''), ('3x-y+13=0', ''), ('25', 'A'))
    """
    if member := re.match(r"[A-Za-z] ?\\in(?![A-Za-z]) ?", text):
        return text[member.end() :], text[0]
    sides = [side.strip() for side in _EQUALS.split(text)]
    names = [side for side in (sides[0], sides[-1]) if _NAME.fullmatch(side)]
    values = [side for side in sides if not _NAME.fullmatch(side)]
    if len(sides) == 1 or not values or not sides[-1] or (len(sides) > 2 and "," in text):
        return text, ""
    if names or not re.search(r"[A-Za-z]", re.sub(r"\\[a-z]+", "", "".join(sides[:-1]))):
        return values[-1], names[0] if names else ""
    return text, ""


def _is_equation(text: str) -> bool:
    return bool(_EQUALS.search(text))


def _number(text: str, among_words: bool = False) -> Fraction | None:
    """Return the single number that a text states, in front of any unit; None where it states none or a calculation."""
    text = re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", text)).replace(" ^", "^").strip(" $")
    found = _NUMBER.fullmatch(text[: LONGEST + 1].rstrip(".,; "))
    if found is None or _is_altered(found):
        return None
    if not among_words and re.search(r"[^\W\d_]", found["before"]):  # a reference such as `June 20`
        return None
    try:
        return Fraction(re.sub("[^-]", "", found["sign"])[:1] + found["size"].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _is_altered(number: re.Match[str]) -> bool:
    return bool(_ALTERED_BEFORE.search(number["before"]) or _ALTERED_BEHIND.search(number["behind"]))


def _dense(text: str) -> str:
    """Return a text in lower case, without the spaces that part nothing; a letter without its brackets."""
    text = re.sub(r"_\{(\w+)\}", r"_\1", _TEXT.sub(r"\1", text).strip())
    text = re.sub(r"(?<![^\W_]) | (?![^\W_])|(?<=[0-9]) (?=[A-Za-z])", "", text)
    return _LETTER_OF_A_CHOICE.sub(r"\1", text).casefold()


def _plain(text: str) -> str:
    """Return the text with digits, signs, powers and fractions in ASCII or LaTeX, whatever characters they had."""
    if text.isascii():
        return text
    text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻]{1,9}", lambda power: f"^{{{unicodedata.normalize('NFKC', power[0])}}}", text)
    text = re.sub("[¼-¾⅐-⅞]", _fraction, text)
    text = unicodedata.normalize("NFKC", text.translate(DASHES)).translate(DASHES)
    return "".join(_SIGNS.get(character, character) for character in text if unicodedata.category(character) != "Cf")


def _fraction(found: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", found[0]).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _tidy(text: str) -> str:
    """Return the text with one way to write spaces, signs and separators."""
    for pattern, replacement in _ONE_WAY_TO_WRITE:
        text = pattern.sub(replacement, text)
    return text.strip(" $,;:`*_").rstrip(".")


@dataclass(frozen=True, kw_only=True)
class MathAnswer(Reward):
    r"""1 where the completion ends in the answer of a reference, else 0; 0 where no reference has an answer.

    Both texts are searched for their answer as `veto_pl.data.mathematics` says; a reference without a place for it is
    an answer as a whole. Plain numbers, with separators, currency, units and percent signs, are compared as exact
    fractions, words as text, and all others by math-verify.

    Example:
        >>> reward = MathAnswer()
        >>> reward(Example("How much?", "9 * 2 = 18\n#### 18"), "She makes 9 * 2 = \\boxed{\\$18.00}.")
        1.0
        >>> reward(Example("How much?", "#### 18"), "18 eggs at $2, so the answer is $36.")
        0.0
    """

    def __call__(self, example: Example, completion: str) -> float:
        """Return 1.0 or 0.0."""
        given = final_answer(completion)
        if not given:
            return 0.0
        expected = (final_answer(reference) or reference.strip()[:WINDOW] for reference in example.references)
        return float(any(same_answer(one, given) for one in expected if one))

    def batch(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the score of each pair; formulas are compared several at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self, examples, completions))
