import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.exceptions import DataError
from veto_pl.report.axis import Axis
from veto_pl.report.curve import Curve, drawable

GAPS = [math.nan, math.inf, -math.inf]
VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from(GAPS))


def curve_of(values):
    return Curve(tuple(range(len(values))), tuple(values))


CURVES = st.lists(VALUES, max_size=150).map(curve_of)


@pytest.mark.parametrize(("steps", "values"), [((1, 2), (0.0,)), ((2, 1), (0.0, 0.0)), ((1, 1), (0.0, 0.0))])
def test_steps_and_values_must_match(steps, values):
    with pytest.raises(DataError, match="Curve"):
        Curve(steps, values)


@given(CURVES)
def test_segments_hold_every_drawable_point_once_and_break_at_each_gap(curve):
    segments = list(curve.segments())
    assert [point for segment in segments for point in segment] == curve.points()
    text = "".join("x" if drawable(value) else " " for value in curve.values)
    assert [len(segment) for segment in segments] == [len(word) for word in text.split()]


@given(CURVES)
def test_smoothing_is_a_local_least_squares_line(curve):
    smoothed, reach = curve.smoothed(), max(2, len(curve) // 50)
    assert smoothed.steps == curve.steps
    for i, (before, after) in enumerate(zip(curve.values, smoothed.values, strict=True)):
        if not drawable(before):
            assert str(before) == str(after)
            continue
        window = [j for j in range(len(curve)) if abs(j - i) <= reach and drawable(curve.values[j])]
        degree = min(1, len(window) - 1)
        fitted = np.polyfit([j - i for j in window], [curve.values[j] for j in window], degree)[-1]
        assert after == pytest.approx(fitted, rel=1e-6, abs=1e-5)


def test_smoothing_keeps_straight_lines():
    values = [3.0 - 0.5 * i for i in range(200)]
    assert curve_of(values).smoothed().values == pytest.approx(values)


def test_only_long_ragged_curves_are_noisy():
    ragged = [(-1.0) ** i for i in range(100)]
    assert curve_of(ragged).is_noisy
    assert not curve_of(ragged[:60]).is_noisy
    assert not curve_of([abs(i - 50) for i in range(100)]).is_noisy
    assert not curve_of([1.0] * 100).is_noisy


@given(CURVES, st.integers(1, 60))
def test_thinning_keeps_ends_extremes_and_gaps(curve, limit):
    thin = curve.thinned(limit)
    kept, original = dict(zip(thin.steps, thin.values, strict=True)), dict(zip(curve.steps, curve.values, strict=True))
    assert all(str(original[step]) == str(value) for step, value in kept.items())
    assert len(thin) <= 1.5 * limit + 5
    values, thin_values = [v for _, v in curve.points()], [v for _, v in thin.points()]
    assert (min(values, default=0), max(values, default=0)) == (
        min(thin_values, default=0),
        max(thin_values, default=0),
    )
    assert thin.steps[:1] == curve.steps[:1]
    assert thin.steps[-1:] == curve.steps[-1:]
    assert (len(thin_values) < len(thin)) == (len(values) < len(curve))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=100), st.integers(1, 30))
def test_pooling_takes_means_of_stretches(values, limit):
    pooled, width = curve_of(values).pooled(limit), math.ceil(len(values) / limit)
    assert len(pooled) <= limit
    expected = [np.mean(values[start : start + width]) for start in range(0, len(values), width)]
    assert pooled.values == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_pooling_leaves_gaps_out():
    pooled = curve_of([1.0, math.nan, math.nan, math.nan, 4.0, 6.0]).pooled(3)
    assert pooled.values[0] == 1.0
    assert math.isnan(pooled.values[1])
    assert pooled.values[2] == 5.0


@given(st.lists(st.floats(-1e149, 1e149), min_size=1, max_size=20))
def test_axes_hold_the_data_and_few_distinct_round_ticks(values):
    axis = Axis.around(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    ticks, labels = axis.ticks(), axis.labels()
    assert 2 <= len(ticks) <= 8
    assert len(set(labels)) == len(labels) == len(ticks)
    assert max(map(len, labels)) <= 14
    assert f"{axis.spacing:e}"[0] in "125"
    for tick, label in zip(ticks, labels, strict=True):
        read = float(label.replace(",", "").replace("\N{MINUS SIGN}", "-"))
        assert read == pytest.approx(tick, rel=1e-9, abs=axis.spacing * 1e-6)
    if min(values) >= 0:
        assert axis.low >= 0


@given(st.floats(-1e6, 1e6))
def test_a_constant_lies_inside(value):
    axis = Axis.around([value, value])
    assert axis.low <= value <= axis.high
    assert axis.low < axis.high
    if abs(value) > 1e-6:
        assert axis.at(value, 0, 1) == pytest.approx(0.5)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=10))
def test_step_axes_have_whole_ticks(steps):
    axis = Axis.of_steps(steps)
    assert axis.low <= min(steps) <= max(steps) <= axis.high
    assert axis.ticks()
    assert all(tick == int(tick) for tick in axis.ticks())
