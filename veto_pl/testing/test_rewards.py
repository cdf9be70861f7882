"""Every installed reward and judge: no text makes it fail, and the same text is always judged alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Real

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.judging import NoVerdictError
from veto_pl.plugins import load_plugins
from veto_pl.seams import Example, Judge, Law, Reward
from veto_pl.testing.examples import installed, rows_of

load_plugins()

REWARDS, JUDGES = installed(Reward), installed(Judge)
ROWS = (("What is 7 + 5?", "It is 12."), ("Where?", "There."), ("Say nothing.", ""), ("Say something.", None))
ODD = ("", " ", "12", "-", "\\boxed{", "{", "####", "\x00", "1e999", "9" * 400, "There.", "\N{SNOWMAN}")
VERDICTS = (0.0, 0.5, 1.0)
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=30))

each = pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)
each_judge = pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: type(judge).__name__)
quick = settings(deadline=None, derandomize=True, max_examples=20)


def scored(reward: Reward, rows: Sequence[Example], completions: Sequence[str]) -> list[float]:
    """Return the score of each pair, one by one.

    Raises:
        AssertionError: the reward has raised, or a score is no finite number.
    """
    return [_score(reward, row, text) for row, text in zip(rows, completions, strict=True)]


def _score(reward: Reward, row: Example, text: str) -> float:
    try:
        score = reward(row, text)
    except Exception as error:
        raise AssertionError(
            f"`{type(reward).__name__}` raised {error!r} for the completion {text!r} of {row}. A reward returns a "
            "number, whatever the text. One that reads fields of the row says by `example_rows()` which rows those are."
        ) from error
    check_score(score, f"`{type(reward).__name__}` gives the completion {text!r}")
    return score


def check_score(score: object, what: str) -> None:
    """Assert that a score is a finite number."""
    assert isinstance(score, Real), f"{what} {score!r} of type {type(score).__name__}, expected a float."
    assert math.isfinite(score), f"{what} {score!r}, expected a finite number."


@each
@given(text=texts)
@quick
def test_every_text_has_a_finite_score(reward: Reward, text: str) -> None:
    """Check that no text makes a reward raise, that scores are finite, and that the row is left alone."""
    rows = rows_of(reward, *ROWS)
    before = copy.deepcopy(rows)
    scored(reward, rows, [text] * len(rows))
    assert rows == before, "The row must not be changed in place."


@each
@given(drawn=st.lists(st.tuples(st.integers(0, 3), texts), max_size=5))
@quick
def test_many_are_scored_as_one_by_one(reward: Reward, drawn: list[tuple[int, str]]) -> None:
    """Check that `batch` gives each pair the score that it has alone, in the same order, and twice the same."""
    known = rows_of(reward, *ROWS)
    rows, completions = [known[place % len(known)] for place, _ in drawn], [text for _, text in drawn]
    alone, together = scored(reward, rows, completions), list(reward.batch(rows, completions))
    assert together == pytest.approx(alone), f"`batch` gives {together}, but one by one the scores are {alone}."
    assert scored(reward, rows, completions) == alone, "The same completion had two scores."


@pytest.mark.parametrize(
    "reward", [x for x in REWARDS if Law.REFERENCE_IS_BEST in x.laws], ids=lambda reward: type(reward).__name__
)
def test_no_text_is_better_than_the_reference(reward: Reward) -> None:
    """Check that a row's reference is judged as well as any other text, if the class promises that."""
    for row in rows_of(reward, *ROWS):
        if row.completion is not None:
            best = _score(reward, row, row.completion)
            for other in ODD:
                assert _score(reward, row, other) <= best, (
                    f"{other!r} is judged better than the reference {row.completion!r}, which has {best}. Where that "
                    "is meant: `laws = Reward.laws - {Law.REFERENCE_IS_BEST}`."
                )


def verdict(judge: Judge, row: Example, first: str, second: str) -> float | None:
    """Return which of two answers is better; None without a verdict.

    Raises:
        AssertionError: the judge has raised something else, or it is no verdict.
    """
    try:
        found = judge(row, first, second)
    except NoVerdictError:
        return None
    except Exception as error:
        raise AssertionError(
            f"`{type(judge).__name__}` raised {error!r} for {first!r} and {second!r}. Without a verdict it raises "
            "`NoVerdictError`."
        ) from error
    assert found in VERDICTS, f"A verdict is 1.0, 0.5 or 0.0, got {found!r} for {first!r} and {second!r}."
    return float(found)


@each_judge
@given(first=texts, second=texts)
@quick
def test_every_pair_has_a_verdict_or_none(judge: Judge, first: str, second: str) -> None:
    """Check that a verdict is 1.0, 0.5 or 0.0, and the same the next time."""
    for row in rows_of(judge, *ROWS):
        assert verdict(judge, row, first, second) == verdict(judge, row, first, second), "Two verdicts of one pair."


@pytest.mark.parametrize(
    "judge", [x for x in JUDGES if Law.ORDER_IS_IGNORED in x.laws], ids=lambda judge: type(judge).__name__
)
@given(first=texts, second=texts)
@quick
def test_the_order_of_two_answers_decides_nothing(judge: Judge, first: str, second: str) -> None:
    """Check that exchanged answers get the opposite verdict, and equal ones tie, if the class promises that."""
    for row in rows_of(judge, *ROWS):
        one, other = verdict(judge, row, first, second), verdict(judge, row, second, first)
        assert one is None or other is None or one + other == 1.0, (
            f"{first!r} against {second!r} is {one}, and the other way round {other}. Where that is meant: "
            "`laws = Judge.laws - {Law.ORDER_IS_IGNORED}`."
        )
