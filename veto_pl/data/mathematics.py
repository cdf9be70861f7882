r"""Where a worked answer ends, and whether it is the expected one.

The answer of a text is looked for in this order:

1. behind the last `####` that a number or a formula follows, GSM8K's own mark;
2. in the last `\boxed{...}`, or behind the last "answer is", "answer:" or "answer =", whichever comes later;
3. the whole text, where it is one short line that states a single number or formula;
4. the last number of the last line that has a digit.

Notes for a calculator, `<<9*2=18>>`, are left out. A mark decides even where its content states no number: nothing
earlier in the text is tried instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from veto_pl.data.quantities import LONGEST, Quantity, last_quantity, read_quantity, tidy
from veto_pl.data.symbolic import harmless, same_expression
from veto_pl.seams import Reward
from veto_pl.types import Example

WINDOW = 20_000
"""Characters of a text that are read, from its end."""
_LINE = 400
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes for a calculator
_MARK = re.compile(rf"####(?!#)[ \t]*([^\n#<]{{1,{_LINE}}})")
_DIRECT = re.compile(r"(?:\*\*|__)?[ ]?[-+(]{0,8}(?:\\?[$€£¥(\[])?[ ]?[-+(]{0,8}(?:[0-9.\u2212]|\\[a-zA-Z])")
_HEADING = re.compile(r"[0-9]{1,2}[.)][ \t]+[^\W\d]")
_PHRASE = re.compile(
    r"\banswer\b[*_]{0,3}\s{0,2}(?:(?:is|was|equals|would be|will be|should be)\b[*_]{0,3}:?|[:=])[*_]{0,3}\s{0,3}"
    r"(?:(?:\\[\[(]|\$\$)\s{0,3})?"
    rf"(?!not\b)([^\n]{{1,{_LINE}}})",
    re.IGNORECASE,
)
_OPENING = re.compile(r"^(?:[$ `]|\.{2,}|\.(?![0-9]))+")
_CLAUSE = re.compile(
    r"[.;!?](?=\s|$|\*)|,\s(?=[A-Za-z])(?!and\b|or\b)|(?<![-+*/÷=^])(?<!times)(?<!cdot)\s\("
    r"|\s(?:because|since|as|which|so|where|when|if|after)\b|\s[-\u2013\u2014]\s(?=[A-Za-z])"
)


@dataclass(frozen=True)
class Answer:
    """What a text answers.

    Args:
        text: the answer, tidied.
        quantity: the number that it states, or None.
    """

    text: str
    quantity: Quantity | None = None

    def matches(self, expected: Answer) -> bool:
        """Whether this is the expected answer: as a number, as the same text, or as an equal formula."""
        if self.quantity is not None and expected.quantity is not None:
            return self.quantity.answers(expected.quantity)
        same_text = bool(self.text) and self.text.casefold() == expected.text.casefold()
        return same_text or same_expression(expected.text, self.text)


def final_answer(text: str) -> Answer | None:
    r"""The answer that a completion ends in, or None where it has none.

    Example:
        >>> final_answer("9 * 2 = 18\n#### 18").text, final_answer("It is 3. So \\boxed{\\frac{1}{2}}.").quantity.value
        ('18', Fraction(1, 2))
        >>> final_answer("The answer is $1,200 per year, not 5.").text, final_answer("no idea")
        ('1,200 per year', None)
    """
    text = _CALCULATION.sub("", text[-WINDOW:])
    marked = _marked(text)
    return marked if marked is not None else _whole(text) or _last_line(text)


def _marked(text: str) -> Answer | None:
    for body in reversed(_MARK.findall(text)):
        if _DIRECT.match(body) and not _HEADING.match(body):
            return _read(_boxed(body) or body)
    box, (place, phrase) = text.rfind(r"\boxed"), _phrase(text)
    if box < 0 and phrase is None:
        return None
    return _read(_boxed(text[box:]) or "" if box >= place else phrase or "")


def _phrase(text: str) -> tuple[int, str | None]:
    """Where the last sentence begins that names an answer with a digit or a formula, and what it says."""
    for found in reversed(list(_PHRASE.finditer(text))):
        clause = _CLAUSE.split(found[1], maxsplit=1)[0]
        if re.search(r"[0-9\\]", clause):
            return found.start(), clause
    return -1, None


def _boxed(text: str) -> str | None:
    """The content of the first box; None where there is none, or none that ends."""
    start = text.find(r"\boxed{")
    depth = 0
    for place in range(start + 6, min(len(text), start + _LINE)) if start >= 0 else ():
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return _signed(text[start + 7 : place])
    return None


def _read(body: str) -> Answer:
    whole = _OPENING.sub("", tidy(body[:_LINE]).rstrip("$ .`"))
    sides = re.split(r"=|≈|\\approx", whole)
    text = _signed(sides[-1]) if len(sides) > 1 and sides[-1].strip() else whole
    return Answer(text, read_quantity(text))


def _signed(text: str) -> str:
    """A dash that opens a formula is a sign, whatever space follows it; elsewhere it may be a bullet."""
    return re.sub(r"^-\s+", "-", text.strip())


def _whole(text: str) -> Answer | None:
    line = text.strip()
    if not line or len(line) > LONGEST or "\n" in line:
        return None
    answer = _read(line)
    return answer if answer.quantity is not None or harmless(answer.text) else None


def _last_line(text: str) -> Answer | None:
    for line in reversed(text.splitlines()):
        if re.search(r"[0-9]", line):
            quantity = last_quantity(tidy(line[-_LINE:]))
            return None if quantity is None else Answer("", quantity)
    return None


@lru_cache(maxsize=4096)
def _expected(reference: str) -> Answer | None:
    """The answer of a reference; one without a mark or a number is an answer as a whole."""
    found = final_answer(reference)
    short = tidy(reference[: LONGEST + 1])
    return found if found is not None or not short or len(short) > LONGEST else Answer(short)


@dataclass(frozen=True, kw_only=True)
class MathAnswer(Reward):
    r"""1 where the completion ends in the answer of a reference, else 0; 0 where no reference has an answer.

    Both texts are searched for their answer as `veto_pl.data.mathematics` says. Plain numbers, with separators,
    currency, units, percent signs, fractions, mixed numbers and powers of ten, are compared as exact fractions. Other
    answers are equal as text, or as formulas by math-verify where they are short enough for a bounded time.

    Example:
        >>> reward = MathAnswer()
        >>> reward(Example("How much?", "9 * 2 = 18\n#### 18"), "She makes 9 * 2 = \\boxed{\\$18.00}.")
        1.0
        >>> reward(Example("How much?", "#### 18"), "18 eggs at $2, so the answer is $36.")
        0.0
    """

    def __call__(self, example: Example, completion: str) -> float:
        """1.0 or 0.0."""
        given = final_answer(completion)
        if given is None:
            return 0.0
        expected = (_expected(reference) for reference in example.references)
        return float(any(answer is not None and given.matches(answer) for answer in expected))
