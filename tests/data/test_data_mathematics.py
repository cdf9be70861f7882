import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.answers import CASES, FORMS
from tests.data.answers import FRAMES as FORM_FRAMES
from veto_pl.data import GSM8K, JsonLines, LastNumber, MathAnswer, final_answer
from veto_pl.seams import Example

ROOT = Path(__file__).resolve().parents[2]


def judged(text, *references):
    return MathAnswer()(Example("?", references[0] if references else None, alternatives=references[1:]), text) == 1.0


@pytest.mark.parametrize("place", range(0, len(CASES), 40))
def test_verdicts(place):
    wrong = [case for case in CASES[place : place + 40] if judged(*case[:2]) is not case[2]]
    assert wrong == []


@pytest.mark.parametrize("place", range(0, len(FORMS), 10))
@pytest.mark.parametrize("frame", FORM_FRAMES)
def test_answers_in_the_forms_of_math(frame, place):
    for reference, same, other in FORMS[place : place + 10]:
        assert [text for text in (reference, *same) if not judged(frame % text, reference)] == [], reference
        assert [text for text in other if judged(frame % text, reference)] == [], reference


def documented():
    """What the table of docs/judging.md says: written, a number, and whether it is that number."""
    for line in (ROOT / "docs" / "judging.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        sides = [(cells[0], cells[1], True), (cells[3], cells[4], False)] if len(cells) == 5 else []
        for written, number, verdict in sides:
            value = re.match(r"-?[0-9./]+(?=$|[:,])", number)
            yield from ((text, value[0], verdict) for text in re.findall("`([^`]+)`", written) if value)


def test_the_table_of_the_docs_is_true():
    rows = list(documented())
    assert len(rows) > 50
    assert [row for row in rows if judged(row[0], row[1]) is not row[2]] == []


def test_any_reference_will_do_and_none_is_no_answer():
    assert judged("#### 4", "#### 3", "#### 4")
    assert not judged("#### 5", "#### 3", "#### 4")
    assert not judged("#### 5")
    assert not judged("5", "no number at all in this long sentence of words and of nothing else" * 5)


INTEGERS = st.integers(-(10**15), 10**15)


def forms(n):
    """Ways to write an integer."""
    sign, size = ("-" if n < 0 else ""), abs(n)
    wide = {ord("0") + digit: chr(0xFF10 + digit) for digit in range(10)}
    groups, dashes = f"{n:,}", [f"{n}".replace("-", dash) for dash in "\u2010\u2011\u2013\u2212\uff0d"]
    return [
        *dashes, f"{n}".translate(wide), groups.replace(",", "\\,"), groups.replace(",", "\\;"),
        groups.replace(",", "{\\,}"), f"{sign}\\text{{{size}}}", f"{sign}({size})",
        f"{n}~\\text{{cm}}", f"\\mathbf{{{n}}}", f"{n} m²", f"{n} cm2", f"*{n}*", f"{n} = x",
        f"{sign}\\cfrac{{{size * 7}}}{{7}}", f"{n}", f"{n:,}", f"{n}.0", f"{n:,}.00", f"{sign}${size:,}", f"${n}",
        f"{n:,} apples", f"**{n}**", f"{n}%", f"{n} km/h", f"\\${n}", f"{n * 4}/4",
        f"{sign}\\frac{{{size * 3}}}{{3}}", f"{n} m^2", f"{n:,} dollars".replace(",", "{,}"),
        f"{n}".replace("-", "\N{MINUS SIGN}"), f"{n * 100}e-2" if n else "0e5",
    ]  # fmt: skip


FRAMES = [
    "{}", "#### {}", "3 + 4 = 7\n#### {}", "so \\boxed{{{}}}", "so \\boxed {{{}}}", "$\\boxed{{{}}}$.",
    "The answer is {}.", "Answer: {}", "Of 7 things it is {}", "Therefore x = {}", "**Final answer:** {}\n",
]  # fmt: skip


@given(INTEGERS, st.data())
def test_an_integer_in_any_form_is_itself_and_no_other(n, data):
    frame, wanted = data.draw(st.sampled_from(FRAMES)), data.draw(st.sampled_from(["#### {}", "\\boxed{{{}}}", "{}"]))
    written = frame.format(data.draw(st.sampled_from(forms(n))))
    assert judged(written, wanted.format(n)), written
    for other in (n + 1, n - 1, n + 10, n * 10 + 10):
        assert not judged(written, wanted.format(other)), (written, other)


NOUNS = [
    "eggs", "minutes to get home", "days to finish", "more than Tom", "third graders", "double rooms",
    "half-hour lessons", "dollars for the two shirts", "times as many as Tom", "cups of tea or coffee",
    "two-bedroom flats", "first-class tickets", "square feet", "m^2", "km/h", "dollars a day", "more days to go",
    "boys and a girl", "dollars' worth of bread", "left", "negative reviews", "least used words",
    "plus-size dresses", "people at the party, not counting Tom", "years old", "times", "fewer",
    "years later, when he is grown", "points", "boxes (large)", "minutes \u2014 nine times two",
]  # fmt: skip
SAID = [
    "#### {} {}",
    "The answer is {} {}.",
    "**Answer:** {} {}",
    "\\boxed{{{}\\text{{ {}}}}}",
    "{} {}",
    "So Ann has {} {}.",
]


@given(st.integers(0, 10**6), st.sampled_from(SAID), st.sampled_from(NOUNS), st.integers(0, 10**6))
def test_a_noun_phrase_behind_the_number_changes_no_verdict(n, frame, noun, other):
    written = frame.format(n, noun)
    assert judged(written, f"#### {n}"), written
    assert judged(written, f"#### {other}") is (n == other)


ALTERED = [
    "not {}", "never {}", "less than {}", "at least {}", "half of {}", "twice as much as {}", "two times {}", "√{}",
    "5 of {}", "5 to {}", "5 - {}", "x - {}", "x + {}", "40% of {}", "±{}", "2^{}", "5:{}", "{}²", "{}½", "{}x",
    "{} - x", "{} times 5", "{} to 5", "{} or more", "{} thirds", "{} and a half", "{} squared", "{} plus",
    "{} out of 5", "{} or nineteen", "{}/5", "{} hours 5 minutes", "{} doubled",
    "{} \\times 5", "{}\\sqrt{{5}}", "\\log {}", "isn't {}", "-{}", "\u2011{}", "-({})", "-\\text{{{}}}", "-\\,{}",
]  # fmt: skip


@given(st.integers(20, 10**6), st.sampled_from(ALTERED), st.sampled_from(FRAMES[1:-3] + FRAMES[-1:]))
def test_what_makes_another_number_of_a_number_is_not_that_number(n, alteration, frame):
    written = frame.format(alteration.format(n))
    assert not judged(written, f"#### {n}"), written


@given(st.lists(INTEGERS, min_size=1, max_size=4), st.sampled_from([" ", " Wait. ", "\n", " No, so "]))
def test_the_last_of_several_answers_counts(numbers, between):
    text = between.join(f"The answer is {n}." for n in numbers)
    for n in numbers:
        assert judged(text, f"#### {n}") is (n == numbers[-1])


def calculations(inner):
    """A formula with its value, from two others; the operands stand in brackets."""

    def joined(parts):
        (left, x), (right, y), kind = parts
        written = {
            "+": (f"({left}) + ({right})", x + y),
            "-": (f"({left}) - ({right})", x - y),
            "*": (f"({left}) \\times ({right})", x * y),
            "/": (f"({left}) / ({right})", x / y if y else None),
            "frac": (f"\\frac{{{left}}}{{{right}}}", x / y if y else None),
            "minus": (f"-({left})", -x),
        }
        return written["minus" if written[kind][1] is None else kind]

    return st.tuples(inner, inner, st.sampled_from(["+", "-", "*", "/", "frac", "minus"])).map(joined)


NUMBERS = st.integers(0, 30).map(lambda n: (str(n), Fraction(n)))
FORMULAS = calculations(st.one_of(NUMBERS, calculations(NUMBERS)))


@settings(max_examples=100)
@given(FORMULAS, st.sampled_from(["\\boxed{%s}", "The answer is %s.", "#### %s", "\\boxed{x = %s}"]))
def test_a_calculation_is_its_value_and_none_of_its_numbers(formula, frame):
    written, value = formula
    assert judged(frame % written, f"#### {value}")
    for other in {*map(Fraction, re.findall("[0-9]+", written)), -value, value + 1} - {value}:
        assert not judged(frame % written, f"#### {other}"), other


SAYINGS = [
    "3x - y + 13 = 0", "(-\\infty, 3]", "\\{1, 2\\}", "2^{10}", "19, 46, \\text{ and } 82", "x \\in [-2, 7]", "(1, 2)",
    "\\frac{1}{2}x + 3", "x^2 + y^2 = 25", "x + y - z - 3 = 0", "[0, \\pi)", "3:2", "\\{x + 1, \\frac{1}{2}\\}",
]  # fmt: skip


@given(st.sampled_from(SAYINGS), st.data())
def test_an_answer_equals_itself_however_it_is_spaced(saying, data):
    tokens = re.findall(r"[0-9]+|\\text\{[^}]*\}|\\[A-Za-z]+|\\.|[^ ]", saying)
    spaced = "".join(
        token + (" " if token.startswith("\\in") else data.draw(st.sampled_from(["", " "]))) for token in tokens
    )
    for one, other in ((saying, spaced), (spaced, saying)):
        assert judged(f"\\boxed{{{one}}}", other), (one, other)
        assert judged(f"\\boxed{{{one}}}", f"\\boxed{{{other}}}"), (one, other)


TERMS = st.tuples(st.integers(1, 99), st.sampled_from("abcnpquvwxyz"), st.sampled_from(["", "^2"]))
REFERENCES = ["{}", "\\boxed{{{}}}", "The answer is {}.", "So the line is {}.", "#### {}"]


@given(
    st.lists(TERMS, min_size=1, max_size=4),
    st.integers(0, 20),
    st.sampled_from(REFERENCES),
    st.sampled_from(["=", " = "]),
)
def test_no_side_of_an_equation_answers_for_it(terms, right, frame, sign):
    reference = frame.format(" + ".join(f"{n}{x}{power}" for n, x, power in terms) + f"{sign}{right}")
    for number in {0, right, terms[0][0]}:
        assert not judged(f"\\boxed{{{number}}}", reference)
    assert judged(f"\\boxed{{{reference}}}" if frame == "{}" else reference, reference)


TWO = st.tuples(st.integers(-9, 9).filter(bool), st.integers(-9, 9).filter(bool), st.integers(-9, 9))


@given(TWO, TWO, st.integers(-9, 9).filter(bool))
def test_an_equation_is_the_same_up_to_a_factor(line, other, factor):
    def written(a, b, c):
        return f"{a}x + ({b})y = {c}"

    assert judged(f"\\boxed{{{written(*(factor * n for n in line))}}}", written(*line))
    same = all(line[i] * other[j] == line[j] * other[i] for i in range(3) for j in range(i))
    assert judged(f"\\boxed{{{written(*other)}}}", written(*line)) is same


ALPHABET = st.characters() | st.sampled_from("#$-+.,%/ 019^*(){}=\\\n") | st.sampled_from(
    [
        "\\boxed{", "#### ", "answer is ", "\\frac{", "\\sqrt", "million", "<<", "e9", "²", "½", "—", "√", "\uff15",
        "not ", " of ",
    ]
)  # fmt: skip
TEXTS = st.lists(ALPHABET, max_size=30).map("".join)


@given(st.one_of(st.none(), TEXTS), TEXTS)
def test_no_text_makes_it_raise(reference, completion):
    assert MathAnswer()(Example("?", reference), completion) in (0.0, 1.0)


PARTS = [
    "(", "{", "9", "1,", "1/", "1 ", "a1", "**", "#### ", "answer is ", "answer:\n", "\\boxed{", "\\frac{", "<<1",
    "^9", "½", "²", "\uff15", "answer is 1. ", "not ", "half a ", "1 000 ", "\\boxed ", "√(", "5 (9 x ", "*a",
    "two or ", "a=", " ", "\n", "-", "x^", "1 and ", ".5", "\\text{", "½", "9!", "**9", "####" + " " * 99,
    "answer" + "\n" * 99,
]  # fmt: skip


def test_a_long_text_is_read_in_a_moment(monkeypatch):
    """One regular expression without a bound would run for hours."""
    monkeypatch.setattr("veto_pl.data.mathematics.same_formula", lambda *_: False)
    for text in (part * 50_000 for part in PARTS):
        for reference in ("#### 5", "\\boxed{x^2+1}", text[:99]):
            assert judged(text, reference) in (True, False)


def test_plain_numbers_and_words_ask_no_other_process(monkeypatch):
    monkeypatch.setattr("veto_pl.data.mathematics.same_formula", None)
    assert judged("so \\boxed{$18.0}", "#### 18")
    assert judged("The answer is (C).", "\\text{C}")
    with pytest.raises(TypeError):
        judged("\\boxed{\\sqrt{3247}}", "\\sqrt{3249}")


def test_a_batch_is_judged_in_its_order():
    texts = [f"\\boxed{{\\frac{{{n}}}{{7}}x}}" for n in range(30)]
    rows = [Example("?", f"\\frac{{{2 * n if n % 3 else 2 * n + 1}x}}{{14}}") for n in range(30)]
    assert MathAnswer().batch(rows, texts) == [float(n % 3 > 0) for n in range(30)]
    assert JsonLines(train="rows.jsonl", verifier=MathAnswer()).rewards(rows[:2], texts[:2]) == [0.0, 1.0]


def test_gsm8k_judges_by_it():
    example = Example("?", "#### 18")
    assert GSM8K().reward(example, "so \\boxed{\\frac{36}{2}}") == 1.0
    assert LastNumber()(example, "so \\boxed{\\frac{36}{2}}") == 0.0


def agrees_with_the_last_number(answers):
    for right, other in zip(answers, [*answers[1:], answers[0]], strict=True):
        example, number = Example("?", right), other.split("####")[1].strip()
        for text in (right, other, f"So it is {number}.", f"The answer is ${number}", number):
            assert MathAnswer()(example, text) == LastNumber()(example, text), (right, text)


def test_it_agrees_with_the_last_number_on_worked_answers():
    agrees_with_the_last_number([
        f"He has {n} and buys {n} more: {n} + {n} = <<{n}+{n}={2 * n}>>{2 * n:,}\n#### {2 * n:,}" for n in range(700)
    ])  # fmt: skip


@pytest.mark.published
@pytest.mark.parametrize(("name", "fewest"), [("train", 7250), ("test", 1282)])
def test_the_published_answers_are_read(name, fewest, published):
    """With their mark all, and without it those whose last number is the answer."""
    answers = [row["answer"] for row in published(f"gsm8k_{name}.jsonl")[1]]
    for answer in answers:
        assert final_answer(answer) == answer.partition("####")[2].strip()
        assert judged(answer, answer)
    assert sum(judged(answer.partition("####")[0], answer) for answer in answers) >= fewest
    if name == "test":
        agrees_with_the_last_number(answers)
