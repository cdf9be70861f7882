r"""Where a worked answer ends, and whether it is the expected one.

The answer of a text is looked for in this order:

1. behind the last `####` that a number or a formula follows, GSM8K's own mark;
2. in the last `\boxed{...}`, or behind the last "answer is", "answer:" or "answer =", whichever comes later;
3. the whole text, where it is one short line that states a single number or formula, or nothing but mathematics;
4. the equation that ends the last line with a digit, else the last number of that line.

Of an equation a side is the answer only where the other is a mere name.

Notes for a calculator, `<<9*2=18>>`, are left out. A mark decides even where its content states no number: nothing
earlier in the text is tried instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from veto_pl.data.equations import equation_at_end, is_equation, is_formula, stated
from veto_pl.data.gatherings import parts_of
from veto_pl.data.quantities import LONGEST, Quantity, last_quantity, plain, read_quantity, tidy
from veto_pl.data.symbolic import harmless, same_equation, same_expression
from veto_pl.seams import Example, Reward

WINDOW = 20_000
"""Characters of a text that are read, from its end."""
_LINE = 400
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes for a calculator
_MARK = re.compile(rf"####(?!#)[ \t]*([^\n#<]{{1,{_LINE}}})")
_DIRECT = re.compile(r"(?:\W|_){0,16}(?:[A-Za-z][ ]?=(?:\W|_){0,8})?(?:[0-9]|(?<=\\)[A-Za-z])")
_HEADING = re.compile(r"[0-9]{1,2}[.)][ \t]+[^\W\d]")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ ]{0,3}")
_PHRASE = re.compile(
    r"\banswer\b[*_]{0,3}\s{0,2}(?:(?:is|was|equals|would be|will be|should be)\b[*_]{0,3}:?|[:=])[*_]{0,3}"
    r"(?:\s{0,3}\n[ \t]{0,3}(?:[-*\u2022][ \t]{1,3})?|[ \t]{0,3})(?:(?:\\[\[(]|\$\$)\s{0,3})?(?!not\b|never\b)",
    re.IGNORECASE,
)
_OPENING = re.compile(r"^(?:[$ `]|\.{2,}|\.(?![0-9]))+")
_CALCULATED = r"[^()A-Za-z\\]{0,40}[0-9)](?:[ ]?[-+*/÷=]|[ ]x[ ])(?:[^()A-Za-z\\]|[ ]x[ ]){1,80}\)"
# What explains an answer: the rest of a sentence, words or a calculation in brackets, `because`.
_EXPLANATION = re.compile(
    rf"[.;!?](?=\s|$)|,\s(?=[A-Za-z])(?!and\b|or\b|[A-Za-z]\s?=)|\s-\s(?=[A-Za-z]{{2}})"
    rf"|(?<![-+*/÷=^])\s\((?=[^()\\]{{0,80}}[A-Za-z]{{2}}|{_CALCULATED})"
    r"|\s(?:because|since|as|which|so|where|when|if|after)\b"
)
_LETTER = re.compile(r"^\(?([A-J])\)?$")
"""The letter of a choice, which counts as an answer without a digit."""
_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])|(?<=[0-9]) (?=[A-Za-z])")
"""A space that parts nothing."""
_BULLET = re.compile(r"^\s*[-*\u2022][ \t]+")


@dataclass(frozen=True)
class Answer:
    """What a text answers.

    Args:
        text: the answer, tidied.
        quantity: the number that it states, or None.
        name: what the text gives this value to, as `x` in `x = 5`, or nothing.
    """

    text: str
    quantity: Quantity | None = None
    name: str = ""

    def matches(self, expected: Answer) -> bool:
        """Whether this is the expected answer: as a number, text, formula or equation, or part by part."""
        if self.name and expected.name and self.name != expected.name:
            return False
        if self.quantity is not None and expected.quantity is not None:
            return self.quantity.answers(expected.quantity)
        if self.quantity is not None or expected.quantity is not None:
            return same_expression(expected.text, self.text)
        if (one := _dense(self.text)) and one == _dense(expected.text):
            return True
        if is_equation(self.text) or is_equation(expected.text):
            return same_equation(expected.text, self.text)
        return same_expression(expected.text, self.text) or self._same_parts(expected)

    def _same_parts(self, expected: Answer) -> bool:
        """Whether both are a set, an interval, a tuple or a list of the same; the order counts between brackets."""
        one, other = parts_of(self.text), parts_of(expected.text)
        if one is None or other is None or one[0] != other[0] or len(one[1]) != len(other[1]):
            return False
        given, wanted = ([_read(part) for part in parts] for _, parts in (one, other))
        if one[0] not in ("", "{}"):
            return all(mine.matches(theirs) for mine, theirs in zip(given, wanted, strict=True))
        found = [next((i for i, theirs in enumerate(wanted) if mine.matches(theirs)), -1) for mine in given]
        return sorted(found) == list(range(len(wanted)))


def final_answer(text: str) -> Answer | None:
    r"""The answer that a completion ends in, or None where it has none.

    Example:
        >>> final_answer("9 * 2 = 18\n#### 18").text, final_answer("It is 3. So \\boxed{\\frac{1}{2}}.").quantity.value
        ('18', Fraction(1, 2))
        >>> final_answer("The answer is $1,200 per year, not 5.").text, final_answer("no idea")
        ('1,200 per year', None)
    """
    text = _CALCULATION.sub("", plain(text[-WINDOW:]))
    marked = _marked(text)
    return marked if marked is not None else _whole(text) or _last_line(text)


def _marked(text: str) -> Answer | None:
    for body in reversed(_MARK.findall(text)):
        if _DIRECT.match(body) and not _HEADING.match(body):
            return _read(_boxed(body) or _said(body))
    boxes, (place, phrase) = list(_BOX.finditer(text)), _phrase(text)
    if boxes and boxes[-1].start() >= place:
        return _read(_boxed(text[boxes[-1].start() :]) or "")
    return None if phrase is None else _read(phrase)


def _phrase(text: str) -> tuple[int, str | None]:
    """Where the last sentence begins that names an answer with a digit or a formula, and what it says."""
    for found in reversed(list(_PHRASE.finditer(text))):
        line = text[found.end() : found.end() + _LINE].partition("\n")[0]
        said = _said(line).rstrip("$ .`*_")
        if re.search(r"[0-9\\]", said) or _LETTER.match(said):
            return found.start(), said
    return -1, None


def _said(body: str) -> str:
    """What a line states before it explains it."""
    return _EXPLANATION.split(_OPENING.sub("", tidy(body[:_LINE])), maxsplit=1)[0]


def _boxed(text: str) -> str | None:
    """The tidy content of the first box; None where there is none, or none that ends."""
    box = _BOX.search(text)
    if box is None:
        return None
    if text[box.end() : box.end() + 1] != "{":  # `\boxed 18`
        return tidy(re.split(r"[$\n]", text[box.end() : box.end() + _LINE], maxsplit=1)[0])
    depth = 0
    for place in range(box.end(), min(len(text), box.end() + _LINE)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return tidy(text[box.end() + 1 : place])
    return None


def _read(said: str) -> Answer:
    """The answer that a tidy text is; of an equation the side that it gives to a name, or all of it."""
    value, name = stated(_OPENING.sub("", said).rstrip("$ .`"))
    text = re.sub(r"^-\s+", "-", value.strip())  # no bullet begins an answer
    return Answer(text, read_quantity(text), name)


def _dense(text: str) -> str:
    """The text in lower case, without the spaces that part nothing, and a letter without its brackets."""
    return _LETTER.sub(r"\1", _SPACE.sub("", text)).casefold()


def _whole(text: str) -> Answer | None:
    line = text.strip()
    if not line or len(line) > LONGEST or "\n" in line:
        return None
    answer = _read(tidy(_BULLET.sub("", line)))
    said = answer.quantity is not None or is_equation(answer.text) or is_formula(answer.text) or harmless(answer.text)
    return answer if said else None


def _last_line(text: str) -> Answer | None:
    for line in reversed(text.splitlines()):
        if re.search(r"[0-9]", line):
            tidied = tidy(_BULLET.sub("", line)[-_LINE:])
            if (equation := equation_at_end(tidied)) is not None:
                return Answer(equation)
            quantity = last_quantity(tidied)
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
