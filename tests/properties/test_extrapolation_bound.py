"""How far extrapolation may go: the fixed point, the bound, and what is known about both."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from veto_pl.functional.extrapolation import extrapolated, lambda_star

masses = st.floats(0.01, 0.99)
sure = st.floats(0.55, 0.999)
caps = st.floats(1.0, 50.0)


@given(p=masses, b=masses, lam=st.floats(-3, 3))
def test_the_fixed_point_is_the_normalised_product(p, b, lam):
    """T^lambda B^(1 - lambda), in float64."""
    teacher, base = (torch.tensor([x, 1 - x], dtype=torch.float64).log() for x in (p, b))
    target = (lam * teacher + (1 - lam) * base).softmax(-1)
    assert extrapolated(p, b, lam) == pytest.approx(float(target[0]), rel=1e-9)
    assert extrapolated(p, b, lam) + extrapolated(1 - p, 1 - b, lam) == pytest.approx(1)


@given(p=masses, b=masses)
def test_the_fixed_point_runs_from_the_base_through_the_teacher(p, b):
    assert extrapolated(p, b, 0.0) == pytest.approx(b)
    assert extrapolated(p, b, 1.0) == pytest.approx(p)


def test_the_fixed_point_saturates():
    assert extrapolated(0.9, 0.1, 1e6) == 1.0
    assert extrapolated(0.9, 0.1, -1e6) == 0.0


@given(p=sure, b=masses, c=caps)
def test_at_the_bound_the_tail_is_the_clipped_one(p, b, c):
    """And below it the tail is larger, above it smaller."""
    assume(b < p - 1e-3)
    bound = lambda_star(p, b, c)
    assert extrapolated(1 - p, 1 - b, bound) == pytest.approx((1 - p) / c, rel=1e-6)
    assert extrapolated(1 - p, 1 - b, bound - 0.01) > (1 - p) / c > extrapolated(1 - p, 1 - b, bound + 0.01)


@given(p=sure, b=masses)
def test_without_room_for_clipping_the_bound_is_the_teacher(p, b):
    assume(b < p)
    assert lambda_star(p, b, 1.0) == pytest.approx(1.0, abs=1e-9)


@given(p=sure, b=masses, c=caps, more=st.floats(0.01, 5))
def test_the_bound_grows_with_the_truncation(p, b, c, more):
    assume(b < p)
    assert lambda_star(p, b, c + more) > lambda_star(p, b, c) >= 1 - 1e-9


@given(p=sure, c=st.floats(1.01, 50.0), step=st.floats(0.001, 0.4))
def test_surer_tokens_bear_less_from_a_neutral_base(p, c, step):
    surer = p + step * (1 - p)
    assert lambda_star(surer, 0.5, c) < lambda_star(p, 0.5, c)


@given(p=sure, c=caps)
def test_a_neutral_base_leaves_the_short_form(p, c):
    assert lambda_star(p, 0.5, c) == pytest.approx(math.log((c - 1 + p) / (1 - p)) / math.log(p / (1 - p)), rel=1e-9)


@pytest.mark.parametrize("c", [1.5, 2.0, 5.0])
def test_the_limit_of_sure_tokens(c):
    """1 + ln c / ln(1 / (1 - p)), ever more closely."""
    errors = []
    for power in (2, 4, 8):
        tail = 10.0**-power
        errors.append(abs(lambda_star(1 - tail, 0.5, c) - 1 - math.log(c) / math.log(1 / tail)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


@pytest.mark.parametrize(
    ("p", "c", "bound"),
    [
        (0.99934, 5, 1.22), (0.9934, 3, 1.22), (0.9623, 2, 1.22), (0.885, 1.5, 1.22),
        (0.99, 5, 1.352), (0.99, 2, 1.152), (0.999, 5, 1.233), (0.95, 2, 1.244),
    ],
)  # fmt: skip
def test_known_values(p, c, bound):
    assert lambda_star(p, 0.5, c) == pytest.approx(bound, abs=1.1e-3)


@given(p=masses, b=masses, c=caps)
def test_a_base_that_is_as_sure_as_the_teacher_sets_no_bound(p, b, c):
    low, high = sorted((p, b))
    assert lambda_star(low, high, c) == math.inf
    assert lambda_star(p, b / 2 + 1e-6, math.inf) == math.inf


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (lambda_star, (1.0, 0.5, 5.0), r"`p` must lie in \(0, 1\), got 1\.0"),
        (lambda_star, (0.9, 0.0, 5.0), r"`b` must lie in \(0, 1\), got 0\.0"),
        (lambda_star, (0.9, 0.5, 0.9), r"`c` must be at least 1, got 0\.9"),
        (lambda_star, (0.9, 0.5, math.nan), r"`c` must be at least 1, got nan"),
        (extrapolated, (math.nan, 0.5, 1.0), r"`p` must lie in \(0, 1\), got nan"),
        (extrapolated, (0.9, 0.5, math.inf), r"`lam` must be finite, got inf"),
    ],
)  # fmt: skip
def test_arguments_outside_their_range_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
