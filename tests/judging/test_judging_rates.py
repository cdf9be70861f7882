import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.judging import NoVerdictError, ReferenceJudge, wilson, win_rate
from veto_pl.seams import Example, Judge

TEXTS = st.text("abc ", min_size=1, max_size=4)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)
ROW = Example("p", "the cat sat down", alternatives=("a cat was sitting",))


class Longer(Judge):
    """Likes length."""

    def __call__(self, example, first, second):
        return 0.5 if len(first) == len(second) else float(len(first) > len(second))


class Place(Judge):
    """Likes a place."""

    def __init__(self, score):
        self.score = score

    def __call__(self, example, first, second):
        return self.score


def compared(judge, pairs, **options):
    return win_rate(judge, [ROW] * len(pairs), [a for a, _ in pairs], [b for _, b in pairs], **options)


@given(PAIRS, st.booleans(), st.integers(0, 5))
def test_a_judge_without_a_bias_is_a_count(pairs, both_orders, seed):
    found = compared(Longer(), pairs, both_orders=both_orders, seed=seed)
    signs = [(len(a) > len(b)) - (len(a) < len(b)) for a, b in pairs]
    assert (found.wins, found.ties, found.losses) == (signs.count(1), signs.count(0), signs.count(-1))
    assert found.rate == pytest.approx((signs.count(1) + signs.count(0) / 2) / len(pairs))
    assert (found.disagreements, found.unjudged) == (0, {})
    if both_orders and any(signs):
        assert found.first_shown_wins == 0.5


@given(PAIRS, st.booleans())
def test_exchanging_the_files_turns_the_rate_around(pairs, both_orders):
    one = compared(Longer(), pairs, both_orders=both_orders)
    other = compared(Longer(), [(b, a) for a, b in pairs], both_orders=both_orders)
    assert one.rate == pytest.approx(1 - other.rate)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)


@given(PAIRS, st.sampled_from([0.0, 1.0]))
def test_a_bias_for_a_place_is_a_tie_and_is_reported(pairs, score):
    found = compared(Place(score), pairs)
    different = sum(a != b for a, b in pairs)
    assert (found.ties, found.disagreements, found.rate) == (len(pairs), different, 0.5)
    assert found.first_shown_wins == score if different else math.isnan(found.first_shown_wins)


def test_one_order_is_drawn_by_the_seed():
    pairs = [(f"a{i}", f"b{i}") for i in range(200)]
    found = [compared(Place(1.0), pairs, both_orders=False, seed=seed) for seed in (0, 0, 1)]
    assert found[0].verdicts == found[1].verdicts != found[2].verdicts
    assert all(0.35 < one.rate < 0.65 for one in found)
    assert found[0].first_shown_wins == 1.0


def test_equal_answers_are_not_asked_about():
    class Fails(Judge):
        def __call__(self, example, first, second):
            raise NoVerdictError("asked")

    assert compared(Fails(), [("same", "same")]).verdicts == (0.5,)
    with pytest.raises(DataError, match=r"Fails gave no verdict on any of 2 pairs: asked \(2\)"):
        compared(Fails(), [("a", "b"), ("c", "d")])


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_that_of_scipy(counts):
    won, number = counts
    expected = binomtest(won, number).proportion_ci(0.95, method="wilson")
    assert wilson(won / number, number) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_observation_has_no_interval():
    assert all(math.isnan(end) for end in wilson(math.nan, 0))


@pytest.mark.parametrize(("rows", "first", "second"), [(0, 0, 0), (2, 1, 2), (1, 2, 2)])
def test_lengths_must_agree(rows, first, second):
    with pytest.raises(DataError, match=f"got {rows} rows, {first} first and {second} second answers"):
        win_rate(Longer(), [ROW] * rows, ["a"] * first, ["b"] * second)


@pytest.mark.parametrize("score", [2.0, -1.0, 0.4, math.nan])
def test_a_judge_must_decide(score):
    with pytest.raises(ConfigurationError, match=r"Place expected to return 1\.0, 0\.5 or 0\.0, returned"):
        compared(Place(score), [("a", "b")])


def test_the_reference_judge_takes_the_best_reference():
    judge = ReferenceJudge()
    assert judge(ROW, "a cat was sitting", "the cat ran") == 1.0
    assert judge(ROW, "nothing", "the cat sat") == 0.0
    assert judge(ROW, "The cat sat down!", "a cat was sitting") == 0.5


def test_the_margin_makes_ties():
    near, far = "the cat sat", "the cat"
    assert ReferenceJudge(margin=0.1)(ROW, near, far) == 1.0
    assert ReferenceJudge(margin=0.3)(ROW, near, far) == 0.5
    with pytest.raises(ConfigurationError, match=r"`ReferenceJudge\.margin` must lie in \[0, 1\), got 1"):
        ReferenceJudge(margin=1)


def test_a_row_without_a_reference_has_no_verdict():
    with pytest.raises(NoVerdictError, match="no reference to compare with"):
        ReferenceJudge()(Example("p"), "a", "b")
