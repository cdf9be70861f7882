"""One id per row from one number per row: exact shares, exact ends, exact truncation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.core.sampling import BLOCK, draw_id
from veto_pl.rollouts import Sampling


@pytest.mark.parametrize("size", [7, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 77])
def test_an_id_is_drawn_exactly_as_often_as_its_probability_says(size):
    """Evenly spaced numbers instead of random ones: every id must get its share, to one draw."""
    generator = torch.Generator().manual_seed(size)
    probability = torch.rand(size, generator=generator, dtype=torch.float64) ** 4
    probability[torch.rand(size, generator=generator) < 0.3] = 0
    probability[: size // 3] = 0
    probability /= probability.sum()
    draws = 20_000
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    ids, logp = draw_id(probability.float()[None].expand(draws, -1), uniform)
    counts = torch.bincount(ids, minlength=size)
    assert (counts[probability == 0] == 0).all()
    assert ((counts / draws - probability).abs() < 1.5 / draws).all()
    assert torch.allclose(logp.double(), probability[ids].log(), atol=1e-5)
    assert (ids.diff() >= 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_ids_of_positive_probability(uniform):
    probability = torch.zeros(4, 1000)
    probability[:, 400:600] = 1 / 200
    ids, _ = draw_id(probability, torch.full((4,), uniform, dtype=torch.float64))
    assert ids.tolist() == [400 if uniform == 0 else 599] * 4


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([0.01, 1.0, 6.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 50, 5000]),
)
def test_truncation_by_prefixes_equals_sorting_everything(seed, spread, top_p, top_k):
    logits = torch.randn(3, 6000, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[spread], [3], [0.1]])
    sampling = Sampling(temperature=0.9, top_p=top_p, top_k=top_k)
    values, ids = (logits.double() / 0.9).log_softmax(-1).sort(-1, descending=True)
    kept = torch.arange(6000) < (top_k or 6000)
    values = values.masked_fill(~kept, -torch.inf).log_softmax(-1)
    before = values.exp().cumsum(-1) - values.exp()
    values = values.masked_fill(before >= top_p, -torch.inf).log_softmax(-1)
    oracle = torch.empty_like(values).scatter(1, ids, values)
    shaped = sampling.shape(logits).double()
    # Whether the last id stays is a matter of rounding.
    assert ((shaped.isinf() != oracle.isinf()).sum(-1) <= 1).all()
    assert torch.allclose(shaped.exp(), oracle.exp(), atol=2e-3 if spread == 6 else 1e-4)
    uniform = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn, logp = sampling.draw(logits, uniform)
    assert torch.allclose(shaped.gather(1, drawn[:, None])[:, 0], logp.double(), atol=1e-4)
