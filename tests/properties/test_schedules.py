"""Schedules against loops and other closed forms of the same curves."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import Sum, Veto
from veto_pl.parts.schedules import Constant, Cosine, Linear, StepWise, WarmUp, scheduled_values, value_at
from veto_pl.testing import oracles

numbers = st.floats(-10, 10)
totals = st.integers(1, 500)
steps = st.integers(0, 600)


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@given(start=numbers, end=numbers, step=steps, total=totals)
def test_against_the_oracles(start, end, step, total):
    assert Linear(start, end)(step, total) == near(oracles.linear(start, end, step, total))
    assert Cosine(start, end)(step, total) == near(oracles.cosine(start, end, step, total))


@given(pieces=st.lists(numbers, min_size=1, max_size=5), data=st.data(), step=steps, total=totals)
def test_pieces_against_the_oracle(pieces, data, step, total):
    inner = st.integers(1, 63).map(lambda n: n / 64)
    count = len(pieces) - 1
    boundaries = sorted(data.draw(st.lists(inner, min_size=count, max_size=count, unique=True)))
    schedule = StepWise(tuple(pieces), tuple(boundaries))
    assert schedule(step, total) == oracles.piecewise_constant(pieces, boundaries, min(step, total), total)


def test_a_piece_begins_at_its_boundary():
    schedule = StepWise((0.8, 0.4, 0.0), (0.25, 0.5))
    assert [schedule(step, 8) for step in range(9)] == [0.8] * 2 + [0.4] * 2 + [0.0] * 5


@given(fraction=st.floats(0, 1), step=steps, total=totals)
def test_the_warm_up_against_the_oracle(fraction, step, total):
    assert WarmUp(fraction, Constant(1.0))(step, total) == near(oracles.warm_up(fraction, step, total))


@given(fraction=st.floats(0, 1), total=totals)
def test_a_warm_up_rises_from_above_zero_and_hands_over_without_a_jump(fraction, total):
    """A first step of size 0 would be wasted, and the schedule behind starts at its own start."""
    rise = round(fraction * total)
    schedule = WarmUp(fraction, Linear(2.0, 0.0))
    values = [schedule(step, total) for step in range(rise + 1)]
    assert values[0] > 0
    assert all(a < b for a, b in itertools.pairwise(values))
    assert values[-1] == 2.0


@given(start=numbers, end=numbers, total=totals)
def test_curves_start_and_end_where_they_say_and_turn_nowhere(start, end, total):
    for schedule in (Linear(start, end), Cosine(start, end)):
        values = [schedule(step, total) for step in range(total + 1)]
        assert values[0] == near(start)
        assert values[-1] == near(end)
        assert all((b - a) * (end - start) >= -1e-9 for a, b in itertools.pairwise(values))


@given(value=numbers, step=steps, total=totals)
def test_a_knob_is_a_number_or_a_schedule(value, step, total):
    assert value_at(value, step, total) == value_at(Constant(value), step, total) == value


@pytest.mark.parametrize("boundaries", [(), (0.5, 0.7), (0.0,), (1.0,)])
def test_pieces_that_do_not_fit_are_refused(boundaries):
    with pytest.raises(ConfigurationError, match=r"one fewer than `values`"):
        StepWise((1.0, 2.0), boundaries)


def test_every_schedule_inside_is_found():
    objective = Sum(terms={"a": Veto(beta=Linear(0.8, 0.0)), "b": Veto(beta=0.5)})
    assert dict(scheduled_values(objective, 5, 10)) == {"a/beta": near(0.4)}
    weighed = Sum(terms={"loss": Veto(beta=Linear(0.8, 0.0))}, weights={"loss": Linear(1.0, 0.0)})
    assert dict(scheduled_values(weighed, 5, 10)) == {"loss/beta": near(0.4), "weights/loss": near(0.5)}
    assert dict(scheduled_values(Veto(beta=Linear(0.8, 0.0)), 5, 10)) == {"beta": near(0.4)}
    assert list(scheduled_values(Veto(beta=0.5), 5, 10)) == []
