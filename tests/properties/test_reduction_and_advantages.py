"""Reductions and credits against plain loops over ragged rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.advantages import future_mean, reverse_cumsum, whiten
from veto_pl.functional.reduction import sequence_mean_sum, token_sum
from veto_pl.parts.advantages import FutureLogRatio, LogRatio
from veto_pl.seams import Stat, Step
from veto_pl.seams.tokens import TokenGrid
from veto_pl.testing.strategies import ragged_grids

grids = ragged_grids()
REDUCTIONS = [token_sum, sequence_mean_sum]
CREDITS = [reverse_cumsum, future_mean, whiten]


def rows_of(values, mask):
    """The numbers that count, row by row, with their columns."""
    return [
        [(t, v) for t, (v, m) in enumerate(zip(row, keep, strict=True)) if m]
        for row, keep in zip(values.tolist(), mask.tolist(), strict=True)
    ]


def gridded(mask, rows):
    """The inverse of `rows_of`."""
    grid = torch.zeros(mask.shape, dtype=torch.float64)
    for row, entries in enumerate(rows):
        for t, value in entries:
            grid[row, t] = value
    return grid


def close(value, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


@given(grid=grids)
def test_tokens_against_a_loop(grid):
    numbers = [v for row in rows_of(*grid) for _, v in row]
    total, weight = token_sum(*grid)
    close(total, math.fsum(numbers))
    assert weight == len(numbers)


@given(grid=grids)
def test_sequences_against_a_loop(grid):
    rows = [[v for _, v in row] for row in rows_of(*grid) if row]
    total, weight = sequence_mean_sum(*grid)
    close(total, math.fsum(math.fsum(row) / len(row) for row in rows))
    assert weight == len(rows)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@given(grid=grids, cut=st.integers(0, 5))
def test_totals_and_weights_add_up_over_rows(reduce, grid, cut):
    values, mask = grid
    whole = Stat(*reduce(values, mask))
    parts = Stat(*reduce(values[:cut], mask[:cut])) + Stat(*reduce(values[cut:], mask[cut:]))
    close(parts.total, whole.total)
    close(parts.weight, whole.weight)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@given(grid=grids)
def test_what_is_masked_is_absent(reduce, grid):
    values, mask = grid
    broken = values.masked_fill(~mask, math.nan).requires_grad_()
    total, weight = reduce(broken, mask)
    assert (total.item(), weight.item()) == tuple(x.item() for x in reduce(values, mask))
    (gradient,) = torch.autograd.grad(total, broken)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] > 0).all()


@given(total=st.floats(-10, 10), weight=st.floats(0.1, 10), coefficient=st.floats(-3, 3))
def test_means_are_divided_once(total, weight, coefficient):
    stat = Stat(torch.tensor(total, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64))
    close(stat.mean(), total / weight)
    close((stat + stat).mean(), total / weight)
    close(stat.scaled(coefficient).mean(), coefficient * total / weight)


def test_the_mean_of_nothing_is_a_zero_with_a_graph():
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mean = Stat(*token_sum(values, torch.zeros(2, 3, dtype=torch.bool))).mean()
    (gradient,) = torch.autograd.grad(mean, values)
    assert mean == 0
    assert (gradient == 0).all()


@given(grid=grids)
def test_what_is_to_come_against_a_loop(grid):
    sums = [[(t, math.fsum(v for _, v in row[i:])) for i, (t, _) in enumerate(row)] for row in rows_of(*grid)]
    close(reverse_cumsum(*grid), gridded(grid[1], sums))


@given(grid=grids)
def test_the_mean_of_the_future_against_a_loop(grid):
    means = [
        [(t, math.fsum(v for _, v in row[i + 1 :]) / max(len(row) - i - 1, 1)) for i, (t, _) in enumerate(row)]
        for row in rows_of(*grid)
    ]
    close(future_mean(*grid), gridded(grid[1], means))


@given(grid=grids)
def test_whitening_against_a_loop(grid):
    rows = rows_of(*grid)
    numbers = [v for row in rows for _, v in row]
    mean = math.fsum(numbers) / max(len(numbers), 1)
    variance = math.fsum((v - mean) ** 2 for v in numbers) / max(len(numbers), 1)
    white = [[(t, (v - mean) / math.sqrt(variance + 1e-8)) for t, v in row] for row in rows]
    close(whiten(*grid), gridded(grid[1], white), 1e-7)


@pytest.mark.parametrize("credit", CREDITS)
@given(grid=grids)
def test_credit_of_what_is_masked_is_zero_whatever_stands_there(credit, grid):
    values, mask = grid
    clean, broken = credit(values, mask), credit(values.masked_fill(~mask, math.nan), mask)
    assert torch.equal(clean, broken)
    assert (clean[~mask] == 0).all()


@pytest.mark.parametrize("credit", [reverse_cumsum, future_mean])
@given(grid=grids, t=st.integers(0, 6))
def test_credit_never_looks_back(credit, grid, t):
    values, mask = grid
    earlier = torch.arange(mask.shape[1]) < t
    close(credit(values.masked_fill(earlier, 100.0), mask)[:, t:], credit(values, mask)[:, t:], 1e-9)


def token_grid(student, teacher, mask):
    rows = torch.arange(len(mask))
    return TokenGrid(student, teacher, None, mask, rows, None, Step(0, 1))


@given(grid=grids, scale=st.floats(0.1, 3), clip=st.floats(0.1, 3))
def test_the_long_term_credit_is_scaled_before_it_is_clipped(grid, scale, clip):
    student, mask = grid
    teacher = student.flip(1)
    ratios = rows_of(teacher - student, mask)
    rewards = [[max(-clip, min(clip, v / scale)) for _, v in row] for row in ratios]
    expected = [
        [(t, math.fsum(reward[i + 1 :]) / max(len(reward) - i - 1, 1)) for i, (t, _) in enumerate(row)]
        for row, reward in zip(ratios, rewards, strict=True)
    ]
    tokens = token_grid(student, teacher, mask)
    value = FutureLogRatio(scale=scale, clip=clip, whitened=False)(tokens)
    close(value, gridded(mask, expected))
    close(FutureLogRatio(scale=scale, clip=clip)(tokens), whiten(value, mask))


@given(grid=grids)
def test_credit_carries_no_graph(grid):
    student, mask = grid
    tokens = token_grid(student.clone().requires_grad_(), student.flip(1), mask)
    for advantage in (LogRatio(), FutureLogRatio()):
        assert not advantage(tokens).requires_grad
    close(LogRatio()(tokens), student.flip(1) - student)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"clip": -1.0}])
def test_scales_and_bounds_must_be_positive(settings):
    with pytest.raises(ConfigurationError, match="must be above 0"):
        FutureLogRatio(**settings)
