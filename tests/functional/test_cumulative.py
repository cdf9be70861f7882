"""Cumulative sums in whole numbers: what a device that must be deterministic draws with, tried on the CPU."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from veto_pl.core.sampling import Sampling, draw_id
from veto_pl.functional import cumulative
from veto_pl.functional.cumulative import cumulative_sum, sum_in_whole_numbers

NUMBERS = st.lists(st.one_of(st.just(0.0), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=50)


@given(NUMBERS)
def test_it_is_the_sum_up_to_the_last_bits(numbers):
    found = sum_in_whole_numbers(torch.tensor(numbers), 0)
    exact = numpy.cumsum(numpy.array(numbers, dtype=numpy.float32), dtype=numpy.longdouble)
    assert numpy.abs(found.numpy() - exact).max() <= 1e-14 * numpy.abs(numbers).sum()


@given(NUMBERS)
def test_nothing_is_added_where_there_is_nothing(numbers):
    values = torch.tensor(numbers).abs()
    steps = sum_in_whole_numbers(values, 0).diff(prepend=torch.zeros(1, dtype=torch.float64))
    assert (steps >= 0).all()
    assert (steps[values == 0] == 0).all()


class NoFloats(TorchDispatchMode):
    """Refuses what CUDA refuses where `torch.use_deterministic_algorithms` is on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.cumsum.default and args[0].is_floating_point():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setattr(cumulative, "must_be_deterministic", lambda device: True)


def draws(sampling, rows=400, ids=3000):
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(rows, ids, generator=generator)
    uniform = torch.rand(rows, dtype=torch.float64, generator=generator)
    return sampling.draw(logits, uniform)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, top_p=0.5), Sampling(top_k=20)])
def test_the_same_ids_are_drawn_and_no_floats_are_summed(sampling, request):
    ids, logp = draws(sampling)
    with pytest.raises(RuntimeError, match="deterministic"), NoFloats():
        draws(sampling)
    request.getfixturevalue("deterministic")
    with NoFloats():
        again, again_logp = draws(sampling)
    assert torch.equal(ids, again)
    assert torch.equal(logp, again_logp)


def test_an_id_without_probability_is_never_drawn(deterministic):
    probability = torch.zeros(4, 600)
    probability[:, 599], probability[:2, 0] = 1e-30, 1e-30
    uniform = torch.tensor([0.0, 0.6, 0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw_id(probability, uniform)[0].tolist() == [0, 599, 599, 599]


def test_the_cpu_adds_as_it_always_did():
    values = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    torch.use_deterministic_algorithms(True)
    assert torch.equal(cumulative_sum(values, 1), values.cumsum(1))
    assert torch.equal(cumulative_sum(values, 0, torch.float64), values.cumsum(0, dtype=torch.float64))
