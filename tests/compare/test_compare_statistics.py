"""Means, intervals and tests over seeds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from veto_pl.compare.statistics import contrast, estimate, holm

VALUES = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=8)
P = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8)


@given(VALUES)
def test_the_interval_holds_the_mean_and_lies_within_the_values(values):
    found = estimate(values)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(values) + slack
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-6)


@given(VALUES, st.floats(-100, 100).map(lambda x: round(x, 2)))
def test_a_shift_shifts_everything(values, shift):
    before, after = estimate(values), estimate([v + shift for v in values])
    scale = max(1.0, *map(abs, values))
    assert after.low - before.low == pytest.approx(shift, abs=1e-9 * scale)
    assert after.high - before.high == pytest.approx(shift, abs=1e-9 * scale)


def test_more_confidence_is_wider_and_more_seeds_are_narrower():
    values = [1.0, 2.0, 4.0, 7.0, 11.0, 16.0]
    low, high = estimate(values, 0.8), estimate(values, 0.99)
    assert high.low < low.low < low.high < high.high
    many = estimate(values * 8)
    assert many.high - many.low < low.high - low.low


def test_the_interval_of_five_seeds_holds_the_true_mean_in_about_nine_of_ten_cases():
    random = np.random.default_rng(0)
    intervals = [estimate(random.normal(size=5)) for _ in range(300)]
    held = sum(found.low <= 0 <= found.high for found in intervals) / len(intervals)
    assert 0.88 <= held <= 0.97  # a plain percentile interval: 0.83


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_has_no_interval_says_so(values):
    found = estimate(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_contrast_is_that_of_the_shared_seeds():
    method, baseline = {1: 3.0, 2: 5.0, 3: 9.0, 7: 100.0}, {3: 4.0, 1: 1.0, 2: 4.5, 8: -100.0}
    found = contrast(method, baseline)
    assert found.difference == estimate([2.0, 0.5, 5.0])
    assert found.seeds == 3
    assert found.p == pytest.approx(stats.ttest_rel([3.0, 5.0, 9.0], [1.0, 4.5, 4.0]).pvalue)


def test_contrasts_without_a_test():
    assert math.isnan(contrast({1: 1.0}, {1: 2.0}).p)
    assert math.isnan(contrast({1: 1.0}, {2: 2.0}).difference.mean)
    assert contrast({1: 1.0, 2: 3.0}, {1: 1.0, 2: 3.0}).p == 1.0
    assert math.isnan(contrast({1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0}).p)


@given(st.lists(st.floats(0.01, 100).map(lambda x: round(x, 2)), min_size=2, max_size=6), st.sampled_from([0.0, 0.03]))
def test_what_single_precision_rounds_is_no_spread(values, shift):
    """A metric is logged as float32: equal differences come back as differences that are equal up to rounding."""
    logged = [{seed: float(np.float32(v + s)) for seed, v in enumerate(values)} for s in (shift, 0.0)]
    p = contrast(*logged).p
    assert p == 1.0 if shift < 1e-6 * max(values) else math.isnan(p)


def test_a_spread_above_rounding_is_one():
    method, baseline = {1: 0.53, 2: 0.6301, 3: 0.40}, {1: 0.50, 2: 0.60, 3: 0.37}
    assert contrast(method, baseline).p == pytest.approx(stats.ttest_rel([0.53, 0.6301, 0.4], [0.5, 0.6, 0.37]).pvalue)


def _closed_test(p_values):
    """Holm's method as the closed testing procedure with Bonferroni tests of every intersection."""
    indices = range(len(p_values))
    subsets = [s for n in range(1, len(p_values) + 1) for s in itertools.combinations(indices, n)]
    return [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in indices]


@given(P)
def test_holm_is_the_closed_test_and_leaves_nan_alone(p_values):
    corrected = holm(p_values)
    real = [p for p in p_values if not math.isnan(p)]
    assert [c for c in corrected if not math.isnan(c)] == pytest.approx(_closed_test(real))
    assert [math.isnan(c) for c in corrected] == [math.isnan(p) for p in p_values]
