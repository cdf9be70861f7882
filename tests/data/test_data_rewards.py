from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.data import ExactMatch, LastNumber, NoReward, final_number
from veto_pl.seams import Example

REWARDS = [NoReward(), ExactMatch(), ExactMatch(strip=False, casefold=True), LastNumber()]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("####18", "18"),
        ("3 + 4 = 7\n#### $1,234.50", "1234.50"),
        ("#### 5 of 10 apples", "5"),
        ("#### 5\nwait\n#### 6", "6"),
        ("#### Step 1\nThe answer is 18.", "18"),
        ("#### ", None),
        ("It takes 3 bolts. ####", "3"),
        ("So 18.00.", "18"),
        ("100%", "100"),
        ("from 10-3", "3"),
        ("x = -3", "-3"),
        ("minus \N{MINUS SIGN}3", "-3"),
        ("minus \u20113", "-3"),
        ("from 10\u20133", "3"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("(2)-5", "5"),
        ("- 5 apples", "5"),
        (".5 litres", "0.5"),
        ("$.50", "0.5"),
        ("done.5", "5"),
        ("1,000,000 people", "1000000"),
        ("pick 1, 2", "2"),
        ("pick 1,2", "2"),
        ("12,3456", "3456"),
        ("**18**", "18"),
        ("\\boxed{\\$18}", "18"),
        ("٣ 日本", None),
        ("", None),
    ],
)
def test_the_number_that_a_text_ends_in(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_every_way_to_write_a_number_is_the_same_number(value):
    example = Example("?", f"work 7\n#### {value}")
    sign, size = ("-" if value < 0 else ""), abs(value)
    for written in (f"{value}", f"{value:,}", f"{sign}${size:,}", f"${value:,}.", f"{value}%", f"{value}0"):
        assert LastNumber()(example, f"It is 3 or {written}") == 1.0
        assert LastNumber()(example, f"#### {written} and 99999999999") == 1.0
    assert LastNumber()(example, f"#### {value + Decimal('0.01')}") == 0.0


def test_the_reference_may_lack_the_mark_or_the_number():
    assert LastNumber()(Example("?", "It is 12."), "12") == 1.0
    assert LastNumber()(Example("?", "none"), "none") == 0.0
    assert LastNumber()(Example("?", None), "12") == 0.0


@given(st.one_of(st.none(), st.text()), st.text(alphabet=st.characters() | st.sampled_from("#$-.,% 019")))
def test_no_text_makes_a_reward_raise(reference, completion):
    for reward in REWARDS:
        assert reward(Example("?", reference), completion) in (0.0, 1.0)


def test_long_hostile_texts_are_read():
    texts = ["1" + ",111" * 20_000 + "1", "#" * 100_000, " " * 100_000 + "-" * 100_000, "9" * 100_000]
    assert [final_number(text) is None for text in texts] == [False, True, True, False]


@pytest.mark.parametrize(
    ("reward", "completion", "expected"),
    [
        (ExactMatch(), " Straße\n", 1.0),
        (ExactMatch(), "STRASSE", 0.0),
        (ExactMatch(casefold=True), "STRASSE ", 1.0),
        (ExactMatch(strip=False), "Straße ", 0.0),
        (ExactMatch(strip=False), "Straße", 1.0),
        (ExactMatch(), "Straße!", 0.0),
        (ExactMatch(), "", 0.0),
        (NoReward(), "Straße", 0.0),
    ],
)
def test_exact_match(reward, completion, expected):
    assert reward(Example("?", "Straße"), completion) == expected


def test_exact_match_with_an_empty_and_a_missing_reference():
    assert ExactMatch()(Example("?", ""), "") == 1.0
    assert ExactMatch()(Example("?", None), "") == 0.0
