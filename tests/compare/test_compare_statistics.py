"""Means, intervals and tests over seeds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from veto_pl.compare.cells import direction
from veto_pl.compare.results import Estimate
from veto_pl.compare.statistics import contrast, contrasts, estimate, holm

VALUES = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=8)
P = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8)
SEEDS = st.dictionaries(st.integers(0, 4), st.floats(0, 1).map(lambda x: round(x, 2)), min_size=2)
LEVELS = st.sampled_from([0.8, 0.95, 0.99])


@given(VALUES, st.floats(-100, 100).map(lambda x: round(x, 2)))
def test_the_interval_is_centred_on_the_mean_and_moves_with_the_values(values, shift):
    before, after = estimate(values), estimate([v + shift for v in values])
    close = {"abs": 1e-7 * max(1.0, *map(abs, values))}
    assert before.mean == pytest.approx(sum(values) / len(values), **close)
    assert before.low <= before.mean <= before.high
    assert (before.low + before.high) / 2 == pytest.approx(before.mean, **close)
    assert (after.low - before.low, after.high - before.high) == pytest.approx((shift, shift), **close)


def test_more_confidence_is_wider_and_more_seeds_are_narrower():
    values = [1.0, 2.0, 4.0, 7.0, 11.0, 16.0]
    low, high = estimate(values, 0.8), estimate(values, 0.99)
    assert high.low < low.low < low.high < high.high
    many = estimate(values * 8)
    assert many.high - many.low < low.high - low.low


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_normal_values_holds_the_true_mean_as_often_as_it_says(seeds, confidence):
    random = np.random.default_rng(0)
    intervals = [estimate(random.normal(size=seeds), confidence) for _ in range(400)]
    held = sum(found.low <= 0 <= found.high for found in intervals)
    low, high = stats.binom.interval(0.9999, 400, confidence)
    assert low <= held <= high


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_has_no_interval_says_so(values):
    found = estimate(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_contrast_is_that_of_the_shared_seeds():
    method, baseline = {1: 3.0, 2: 5.0, 3: 9.0, 7: 100.0}, {3: 4.0, 1: 1.0, 2: 4.5, 8: -100.0}
    found = contrast(method, baseline)
    expected = estimate([2.0, 0.5, 5.0])
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.seeds == 3
    assert found.p == pytest.approx(stats.ttest_rel([3.0, 5.0, 9.0], [1.0, 4.5, 4.0]).pvalue)


def test_contrasts_without_a_test():
    assert math.isnan(contrast({1: 1.0}, {1: 2.0}).p)
    assert math.isnan(contrast({1: 1.0}, {2: 2.0}).difference.mean)
    same = contrast({1: 1.0, 2: 3.0}, {1: 1.0, 2: 3.0})
    assert (same.p, same.difference) == (1.0, Estimate(0.0, 0.0, 0.0))
    sure = contrast({1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0})
    assert (sure.difference.mean, math.isnan(sure.p), math.isnan(sure.difference.low)) == (1.0, True, True)


@given(st.lists(st.floats(0.01, 100).map(lambda x: round(x, 2)), min_size=2, max_size=6), st.sampled_from([0.0, 0.03]))
def test_what_single_precision_rounds_is_no_spread(values, shift):
    """A metric is logged as float32: equal differences come back as differences that are equal up to rounding."""
    logged = [{seed: float(np.float32(v + s)) for seed, v in enumerate(values)} for s in (shift, 0.0)]
    p = contrast(*logged).p
    assert p == 1.0 if shift < 1e-6 * max(values) else math.isnan(p)


def test_a_spread_above_rounding_is_one():
    method, baseline = {1: 0.53, 2: 0.6301, 3: 0.40}, {1: 0.50, 2: 0.60, 3: 0.37}
    assert contrast(method, baseline).p == pytest.approx(stats.ttest_rel([0.53, 0.6301, 0.4], [0.5, 0.6, 0.37]).pvalue)


@given(st.lists(SEEDS, min_size=1, max_size=5), SEEDS, LEVELS)
def test_interval_p_and_arrow_of_a_row_never_contradict_each_other(methods, baseline, confidence):
    found = contrasts({str(i): values for i, values in enumerate(methods)}, baseline, confidence)
    alone = {str(i): contrast(values, baseline, confidence) for i, values in enumerate(methods)}
    for name, pair in found.items():
        low, mean, high = pair.difference.low, pair.difference.mean, pair.difference.high
        assert math.isnan(low) == math.isnan(pair.p)
        if math.isnan(pair.p) or math.isclose(pair.p, 1 - confidence, rel_tol=1e-9):
            continue
        assert (pair.p < 1 - confidence) == (low > 0 or high < 0)
        assert direction(pair, confidence) == ("▲" if low > 0 else "▼" if high < 0 else "")
        assert low <= mean <= high
        # Wider than uncorrected, and no wider than Bonferroni's.
        strictest = contrast(methods[int(name)], baseline, 1 - (1 - confidence) / len(methods)).difference
        slack = 1e-9 * (1 + high - low)
        assert strictest.low - slack <= low <= alone[name].difference.low + slack
        assert alone[name].difference.high - slack <= high <= strictest.high + slack


def test_one_method_alone_has_the_uncorrected_interval():
    values = {1: 0.3, 2: 0.5, 3: 0.45}, {1: 0.2, 2: 0.45, 3: 0.43}
    assert contrasts({"a": values[0]}, values[1])["a"] == contrast(*values)


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_a_corrected_interval_holds_its_difference_in_at_least_as_many_cases_as_it_says(effect):
    random = np.random.default_rng(1)
    held = tested = 0
    for _ in range(150):
        drawn = random.normal(size=(5, 5)) + effect * np.arange(5)[:, None]
        rows = [dict(enumerate(map(float, row))) for row in drawn]
        found = contrasts({str(i): row for i, row in enumerate(rows[1:], 1)}, rows[0])
        held += sum(pair.difference.low <= effect * int(i) <= pair.difference.high for i, pair in found.items())
        tested += len(found)
    assert held >= stats.binom.interval(0.9999, tested, 0.95)[0]


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
