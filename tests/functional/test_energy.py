"""The energy distance: a loop, and what makes it a distance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.functional.energy import energy_distance


def points(seed, count, shift=0.0):
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def mean_distance(x, y):
    return sum(float((a - b).square().sum().sqrt()) for a in x for b in y) / (len(x) * len(y))


@given(seed=st.integers(0, 1000), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_it_is_the_loop_symmetric_and_not_negative(seed, sizes):
    x, y = points(seed, sizes[0]), points(seed + 1, sizes[1], 0.5)
    expected = 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)
    assert float(energy_distance(x, y)) == pytest.approx(expected, abs=1e-9)
    assert float(energy_distance(x, y)) == pytest.approx(float(energy_distance(y, x)), abs=1e-12)
    assert energy_distance(x, y) >= -1e-12
    assert float(energy_distance(x, x)) == pytest.approx(0, abs=1e-12)


def test_it_grows_with_the_distance():
    x = points(0, 40)
    near, far = (float(energy_distance(x, points(1, 40, shift))) for shift in (0.2, 2.0))
    assert 0 < near < far
