import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.charts.curve import Curve, Envelope, drawable
from veto_pl.charts.text import tick_label
from veto_pl.exceptions import DataError

REALS = st.floats(-1e6, 1e6)
VALUES = st.one_of(REALS, st.sampled_from([math.nan, math.inf]))
CURVES = st.dictionaries(st.integers(0, 60), VALUES, min_size=1, max_size=40).map(
    lambda points: Curve(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
)
SEEDS = st.lists(CURVES, min_size=1, max_size=4)


def as_lists(envelope):
    return [part.tolist() for part in (envelope.steps, envelope.mean, envelope.low, envelope.high)]


@pytest.mark.parametrize(("steps", "values"), [((1, 2), (0.0,)), ((2, 1), (0.0, 0.0)), ((1, 1), (0.0, 0.0))])
def test_steps_and_values_must_match(steps, values):
    with pytest.raises(DataError, match="Curve"):
        Curve(steps, values)


@given(st.lists(st.lists(REALS, min_size=9, max_size=9), min_size=1, max_size=5))
def test_on_common_steps_an_envelope_is_the_mean_and_the_range(values):
    steps, mean, low, high = as_lists(Envelope.of([Curve(tuple(range(9)), tuple(row)) for row in values]))
    assert steps == list(range(9))
    assert mean == pytest.approx(np.mean(values, axis=0), abs=1e-8)
    assert low == np.min(values, axis=0).tolist()
    assert high == np.max(values, axis=0).tolist()


@given(SEEDS, st.integers(1, 20))
def test_the_mean_lies_in_the_range_and_the_range_is_that_of_the_seeds(curves, limit):
    envelope = Envelope.of(curves, limit)
    assert len(envelope.steps) <= limit
    finite = [value for curve in curves for value in curve.values if drawable(value)]
    for low, mean, high in zip(envelope.low, envelope.mean, envelope.high, strict=True):
        if drawable(mean):
            assert low - 1e-6 <= mean <= high + 1e-6
            assert min(finite) - 1e-6 <= low <= high <= max(finite) + 1e-6


@given(st.lists(st.lists(REALS, min_size=100, max_size=100), min_size=1, max_size=3), st.integers(1, 30))
def test_stretches_keep_the_extremes(values, limit):
    envelope = Envelope.of([Curve(tuple(range(100)), tuple(row)) for row in values], limit)
    assert min(envelope.low) == np.min(values)
    assert max(envelope.high) == np.max(values)


def test_a_seed_that_logged_at_other_steps_is_interpolated():
    steps, mean, *_ = as_lists(Envelope.of([Curve((0, 10, 20), (0.0, 10.0, 20.0)), Curve((5, 15), (0.0, 10.0))]))
    assert (steps, mean) == ([5, 10, 15], [2.5, 7.5, 12.5])


def test_a_seed_that_is_not_finite_ends_the_mean_but_not_the_range():
    _, mean, low, high = as_lists(Envelope.of([Curve((0, 1), (1.0, math.nan)), Curve((0, 1), (3.0, 4.0))]))
    assert mean[0] == 2.0
    assert math.isnan(mean[1])
    assert (low, high) == ([1.0, 4.0], [3.0, 4.0])


def test_seeds_without_common_steps_and_no_seeds_at_all():
    assert np.isnan(Envelope.of([Curve((0, 1), (1.0, 1.0)), Curve((5, 6), (2.0, 2.0))]).mean).all()
    assert as_lists(Envelope.of([])) == as_lists(Envelope.of([Curve()])) == [[], [], [], []]


@given(st.integers(-999, 999), st.integers(-40, 40))
def test_labels_of_ticks_are_the_numbers(digits, exponent):
    value = digits * 10.0**exponent
    read = float(tick_label(value).replace(",", "").replace("\N{MINUS SIGN}", "-"))
    assert read == pytest.approx(value, rel=1e-9)
