import json
import multiprocessing
import re
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.data import GSM8K, LastNumber, MathAnswer, final_answer
from veto_pl.data.quantities import read_quantity, tidy
from veto_pl.data.symbolic import harmless, same_expression
from veto_pl.types import Example

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def judged(text, *references):
    return MathAnswer()(Example("?", references[0] if references else None, alternatives=references[1:]), text) == 1.0


RIGHT, WRONG = True, False
CASES = [
    # Marks of GSM8K.
    ("9 * 2 = 18\n#### 18", "#### 18", RIGHT),
    ("####18", "#### 18", RIGHT),
    ("#### $1,300.50", "#### 1300.5", RIGHT),
    ("#### 18 eggs", "#### 18", RIGHT),
    ("#### \\boxed{18}", "#### 18", RIGHT),
    ("#### **18**", "#### 18", RIGHT),
    ("#### -3", "#### -3", RIGHT),
    ("#### 5\nWait, no.\n#### 6", "#### 6", RIGHT),
    ("#### 5\nWait, no.\n#### 6", "#### 5", WRONG),
    ("#### 19\nThe eggs are 18.", "#### 18", WRONG),
    ("#### 18\n\nQuestion: Tom has 7 apples.", "#### 18", RIGHT),
    ("#### Step 1\nThe answer is 18.", "#### 18", RIGHT),
    ("#### 1. Count\n#### 2. Sell the eggs\nShe makes $18.", "#### 18", RIGHT),
    ("#### 2. Sell the eggs\nShe makes $18.", "#### 2", WRONG),
    ("#### 5 of 10 apples", "#### 5", WRONG),
    ("#### 3 hours 20 minutes", "#### 3", WRONG),
    ("It takes 3 bolts. ####", "#### 3", RIGHT),
    ("It is <<9*2=18>>18.", "#### 18", RIGHT),
    # Boxes.
    ("So it is \\boxed{18}.", "#### 18", RIGHT),
    ("\\boxed{18} is wrong, so \\boxed{19}", "#### 18", WRONG),
    ("\\boxed{18} is wrong, so \\boxed{19}", "#### 19", RIGHT),
    ("$\\boxed{\\$18.00}$", "#### 18", RIGHT),
    ("\\boxed{18\\text{ apples}}", "#### 18", RIGHT),
    ("\\boxed{\\frac{3}{4}}", "#### 0.75", RIGHT),
    ("\\boxed{\\dfrac34}", "#### 0.75", RIGHT),
    ("\\boxed{1\\frac{1}{2}}", "#### 1.5", RIGHT),
    ("\\boxed{12{,}500}", "#### 12500", RIGHT),
    ("\\boxed{12\\,500}", "#### 12500", RIGHT),
    ("\\boxed{x = 18}", "#### 18", RIGHT),
    ("\\boxed{9 \\times 2 = 18}", "#### 18", RIGHT),
    ("\\boxed{9 \\times 2}", "#### 18", RIGHT),
    ("\\boxed{18 = 9 + 9 + 1}", "#### 18", WRONG),
    ("\\boxed{5!}", "#### 5", WRONG),
    ("\\boxed{5x}", "#### 5", WRONG),
    ("\\boxed{17 \\text{ or } 18}", "#### 18", WRONG),
    ("\\boxed{1", "#### 1", WRONG),
    ("\\boxed{}", "#### 18", WRONG),
    ("18 it is: \\boxed{\\text{none}}", "#### 18", WRONG),
    ("\\boxed{5\\%}", "#### 5", RIGHT),
    ("\\boxed{90^\\circ}", "#### 90", RIGHT),
    ("\\boxed{5 \\text{ m}^2}", "#### 5", RIGHT),
    ("\\boxed{-\\frac{1}{2}}", "#### -0.5", RIGHT),
    ("\\boxed{-\\frac{1}{2}}", "#### 0.5", WRONG),
    ("\\boxed{- \\dfrac12}", "#### -0.5", RIGHT),
    ("\\boxed{-½}", "#### 0.5", WRONG),
    ("\\boxed{- 5}", "#### 5", WRONG),
    ("\\boxed{x = - 5}", "#### -5", RIGHT),
    ("\\boxed{-(5)}", "#### 5", WRONG),
    ("\\boxed{-\\left(5\\right)}", "#### 5", WRONG),
    ("\\boxed{-(5)}", "#### -5", RIGHT),
    ("- 5 apples", "#### 5", RIGHT),
    # Phrases.
    ("The answer is 18.", "#### 18", RIGHT),
    ("The final answer is: $18", "#### 18", RIGHT),
    ("**Answer:** 18 dollars", "#### 18", RIGHT),
    ("Answer: 18 eggs, because 9 * 2 = 18", "#### 18", RIGHT),
    ("The answer is 9 * 2 = 18 dollars.", "#### 18", RIGHT),
    ("The answer is $1,200 per year, not 5.", "#### 1200", RIGHT),
    ("The answer is $1,200 per year, not 5.", "#### 5", WRONG),
    ("The answer is not 18. It is 19.", "#### 18", WRONG),
    ("18 eggs at $2, so the answer is $36.", "#### 18", WRONG),
    ("The answer is 3, 4, or 5", "#### 5", WRONG),
    ("The answer is 18. Then \\boxed{19}", "#### 19", RIGHT),
    ("\\boxed{18}. Sorry, the answer is 19.", "#### 18", WRONG),
    ("\\boxed{18}. Sorry, the answer is 19.", "#### 19", RIGHT),
    ("The answer is 5 and a half.", "#### 5", WRONG),
    ("The answer is 18 (9 * 2).", "#### 18", RIGHT),
    ("The answer is 9 / (3).", "#### 9", WRONG),
    ("The answer is half of 36", "#### 36", WRONG),
    ("The answer is negative 5.", "#### -5", RIGHT),
    ("The answer is less than 5", "#### 5", WRONG),
    ("The answer is the following:\n\n18", "#### 18", RIGHT),
    # Last numbers.
    ("She makes $18 every day.", "#### 18", RIGHT),
    ("18 eggs are left, and 4 are sold", "#### 18", WRONG),
    ("so the total is 18.00", "#### 18", RIGHT),
    ("so the total is 1,8", "#### 8", WRONG),
    ("so we need 9 * 2", "#### 2", WRONG),
    ("we get 10-3", "#### 3", WRONG),
    ("in total (18).", "#### 18", RIGHT),
    ("so it is 3 / (4", "#### 4", WRONG),
    ("they meet at 10:30", "#### 30", WRONG),
    ("It costs 1/4 of a dollar", "#### 0.25", RIGHT),
    ("It costs 1/4 of a dollar", "#### 4", WRONG),
    ("no idea", "#### 18", WRONG),
    ("", "#### 18", WRONG),
    # Forms of a number.
    ("18", "18", RIGHT),
    ("1,000,000", "#### 1000000", RIGHT),
    ("1.5e3", "#### 1500", RIGHT),
    ("1.2 \\times 10^{3}", "#### 1200", RIGHT),
    ("1 1/2 cups", "#### 1.5", RIGHT),
    ("2½", "#### 2.5", RIGHT),
    ("-$5", "#### -5", RIGHT),
    ("$-5", "#### -5", RIGHT),
    ("\N{MINUS SIGN}5", "#### -5", RIGHT),
    ("5", "#### -5", WRONG),
    ("40%", "#### 40", RIGHT),
    ("40 percent", "#### 40", RIGHT),
    ("0.4", "#### 40%", RIGHT),
    ("40", "#### 40%", RIGHT),
    ("40%", "#### 0.4", WRONG),
    ("100%", "#### 1", WRONG),
    ("$4 million", "#### 4", RIGHT),
    ("$4 million", "#### 4000000", RIGHT),
    ("4", "#### 4 million", WRONG),
    ("5k", "#### 5000", RIGHT),
    ("5 km", "#### 5000", WRONG),
    ("33.33", "#### 100/3", WRONG),
    ("12,50", "#### 12.5", WRONG),
    ("5^2", "#### 25", RIGHT),
    ("1/0", "#### 0", WRONG),
    # Other answers than numbers.
    ("\\boxed{2\\sqrt{3}}", "\\boxed{\\sqrt{12}}", RIGHT),
    ("\\boxed{2\\sqrt{3}}", "\\boxed{\\sqrt{13}}", WRONG),
    ("\\boxed{1 + x^2}", "$x^2+1$", RIGHT),
    ("\\boxed{1 + x^2}", "$x^2+2$", WRONG),
    ("\\boxed{\\frac{\\pi}{2}}", "\\pi/2", RIGHT),
    ("\\boxed{\\text{Monday}}", "monday", RIGHT),
    ("\\boxed{\\text{Monday}}", "Tuesday", WRONG),
    ("\\boxed{3:2}", "3:2", RIGHT),
    ("\\boxed{(1,2)}", "(1, 2)", RIGHT),
    ("\\boxed{(2,1)}", "(1, 2)", WRONG),
    # Points, separators and quotes around a number.
    ("The answer is .5", "0.5", RIGHT),
    (".5", "5", WRONG),
    ("The answer is ...5", "5", RIGHT),
    ("\\boxed{1,\\!000}", "1000", RIGHT),
    ("\\boxed{12,\\!345,\\!678}", "12345678", RIGHT),
    ("The answer is `5`.", "5", RIGHT),
    ("It costs 7 each.\nThe answer is:\n\n\\[\n3\n\\]", "3", RIGHT),
    ("The answer is $$3$$", "3", RIGHT),
]


@pytest.mark.parametrize(("text", "reference", "verdict"), CASES)
def test_verdicts(text, reference, verdict):
    assert judged(text, reference) is verdict


def test_any_reference_will_do_and_none_is_no_answer():
    assert judged("#### 4", "#### 3", "#### 4")
    assert not judged("#### 5", "#### 3", "#### 4")
    assert not judged("#### 5")
    assert not judged("5", "no number at all in this long sentence of words and of nothing else" * 5)


INTEGERS = st.integers(-(10**15), 10**15)


def forms(n):
    """Ways to write an integer."""
    sign, size = ("-" if n < 0 else ""), abs(n)
    return [
        f"{n}", f"{n:,}", f"{n}.0", f"{n:,}.00", f"{sign}${size:,}", f"${n}", f"{n:,} apples", f"**{n}**", f"{n}%",
        f"{n} km/h", f"\\${n}", f"{n * 4}/4", f"\\frac{{{abs(n) * 3}}}{{3}}" if n >= 0 else f"{n}", f"{n} m^2",
        f"{n:,} dollars".replace(",", "{,}"), f"{n}".replace("-", "\N{MINUS SIGN}"), f"{n * 100}e-2" if n else "0e5",
    ]  # fmt: skip


FRAMES = [
    "{}", "#### {}", "3 + 4 = 7\n#### {}", "so \\boxed{{{}}}", "$\\boxed{{{}}}$.", "The answer is {}.", "Answer: {}",
    "Of 7 things it is {}", "Therefore x = {}", "**Final answer:** {}\n",
]  # fmt: skip


@given(INTEGERS, st.data())
def test_an_integer_in_any_form_is_itself_and_no_other(n, data):
    frame, wanted = data.draw(st.sampled_from(FRAMES)), data.draw(st.sampled_from(["#### {}", "\\boxed{{{}}}", "{}"]))
    written = frame.format(data.draw(st.sampled_from(forms(n))))
    assert judged(written, wanted.format(n)), written
    for other in (n + 1, n - 1, n + 10, n * 10 + 10):
        assert not judged(written, wanted.format(other)), (written, other)


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=10**6))
def test_a_fraction_is_read_exactly(value):
    whole, rest = divmod(abs(value), 1)
    mixed = f"{'-' if value < 0 else ''}{whole} {rest.numerator}/{rest.denominator}"
    for written in (f"{value.numerator}/{value.denominator}", mixed):
        assert read_quantity(written).value == value
    latex = f"\\frac{{{abs(value).numerator}}}{{{value.denominator}}}"
    assert read_quantity(tidy(latex)).value == abs(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_decimal_is_read_exactly(value):
    assert read_quantity(f"{value}").value == read_quantity(f"{value:,}").value == Fraction(value)
    assert not judged(f"{value}", f"#### {value + Decimal('0.001')}")


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


ALPHABET = st.characters() | st.sampled_from("#$-+.,%/ 019^*(){}=\\\n") | st.sampled_from(
    ["\\boxed{", "#### ", "answer is ", "\\frac{", "\\sqrt", "million", "<<", "e9"]
)  # fmt: skip
TEXTS = st.lists(ALPHABET, max_size=30).map("".join)


@given(st.one_of(st.none(), TEXTS), TEXTS)
def test_no_text_makes_it_raise(reference, completion):
    assert MathAnswer()(Example("?", reference), completion) in (0.0, 1.0)


PARTS = [
    "(", "{", "9", "1,", "1/", "1 ", "a1", "**", "#### ", "answer is ", "answer:\n", "\\boxed{", "\\frac{", "<<1", "^9",
    " ", "\n", "-", "x^", "1 and ", ".5", "\\text{", "½", "9!", "**9", "####" + " " * 99, "answer" + "\n" * 99,
]  # fmt: skip
BOMBS = [
    "9**9**9**9", "9^{9^{9^{9}}}", "99999999!", "(" * 40 + "1" + ")" * 40, "(((x+1)^{9})^{9})^{9}", "10^{999999999}",
    "(x+y+z+a+b+c)^9", "\\sqrt{" * 12 + "2" + "}" * 12, "1e999999999", "\\int x dx", "\\sum_{k=1}^{999999999} k",
]  # fmt: skip


def judge_hostile_texts():
    """Without a bound one of these would run for hours or fill the memory."""
    texts = [part * 50_000 for part in PARTS]
    texts += [frame % bomb for bomb in BOMBS for frame in ("%s", "#### %s", "\\boxed{%s}", "The answer is %s.")]
    for text in texts:
        for reference in ("#### 5", "\\boxed{x^2+1}", text[:99]):
            assert MathAnswer()(Example("?", reference), text) in (0.0, 1.0)


def test_hostile_texts_end():
    process = multiprocessing.get_context("fork").Process(target=judge_hostile_texts)
    process.start()
    process.join(timeout=120)
    process.kill()
    process.join()
    assert process.exitcode == 0


def test_plain_numbers_need_no_sympy(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # an import of it fails
    assert judged("so \\boxed{$18.0}", "#### 18")
    with pytest.raises(ImportError):
        judged("\\boxed{\\sqrt{3247}}", "\\sqrt{3249}")


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9}}", "9^9^9", "5!", "x^{99}", "(" * 9 + "1" + ")" * 9, "1" * 20, "sin(x)", "x+y+z", "1+" * 30 + "1", ""],
)
def test_what_is_not_evaluated(text):
    assert not harmless(text)
    assert not same_expression(text, text)


def test_formulas_are_judged_in_threads_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(judged("\\boxed{\\sqrt{50}}", "\\boxed{5\\sqrt{2}}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_the_answer_that_is_found():
    assert final_answer("The answer is $1,200.").text == "1,200"
    assert final_answer("nothing") is None


def test_gsm8k_judges_by_it():
    example = Example("?", "#### 18")
    assert GSM8K().reward(example, "so \\boxed{\\frac{36}{2}}") == 1.0
    assert LastNumber()(example, "so \\boxed{\\frac{36}{2}}") == 0.0


def worked_answers():
    """Answers as GSM8K has them, and GSM8K's own where the file is on this machine."""
    made = [
        f"He has {n} and buys {n} more: {n} + {n} = <<{n}+{n}={2 * n}>>{2 * n:,}\n#### {2 * n:,}" for n in range(700)
    ]
    file = SHARED / "gsm8k_test.jsonl"
    return made + [json.loads(line)["answer"] for line in file.read_text().splitlines()] if file.exists() else made


@pytest.mark.slow
def test_it_agrees_with_the_last_number_on_worked_answers():
    answers = worked_answers()
    for right, other in zip(answers, [*answers[1:], answers[0]], strict=True):
        example, number = Example("?", right), other.split("####")[1].strip()
        for text in (right, other, f"So it is {number}.", f"The answer is ${number}", number):
            assert MathAnswer()(example, text) == LastNumber()(example, text), (right, text)
