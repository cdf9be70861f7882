from itertools import chain

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from veto_pl.data import RankSampler, even_batches
from veto_pl.exceptions import ConfigurationError

SIZES = {"length": st.integers(0, 40), "world": st.integers(1, 6), "seed": st.integers(0, 5)}


def dealt(length, world, seed, epoch=0, **options):
    samplers = [RankSampler(length, rank, world, seed, **options) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def undealt(shares):
    """The global order: one round after another."""
    longest = max(len(share) for share in shares)
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


@given(**SIZES, epoch=st.integers(0, 3))
def test_ranks_share_everything_without_overlap_in_one_order(length, world, seed, epoch):
    alone = dealt(length, 1, seed, epoch)[0]
    shares = dealt(length, world, seed, epoch)
    assert sorted(chain(*shares)) == list(range(length))
    assert undealt(shares) == alone


@given(**SIZES)
def test_even_shares_drop_the_last_incomplete_round_only(length, world, seed):
    shares = dealt(length, world, seed, even=True)
    assert {len(share) for share in shares} == {length // world}
    assert undealt(shares) == dealt(length, 1, seed)[0][: length - length % world]


@given(**SIZES, even=st.booleans())
def test_the_length_is_the_number_of_items(length, world, seed, even):
    for rank in range(world):
        sampler = RankSampler(length, rank, world, seed, even=even)
        assert len(sampler) == len(list(sampler))


def test_the_order_changes_with_epoch_and_seed_and_repeats():
    orders = {(seed, epoch): tuple(dealt(50, 1, seed, epoch)[0]) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    assert orders[2, 3] == tuple(dealt(50, 1, 2, 3)[0])


def test_without_shuffling_the_order_is_the_rows_own():
    assert dealt(5, 2, 0, epoch=3, shuffle=False) == [[0, 2, 4], [1, 3]]


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    list(RankSampler(20))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank, world):
    with pytest.raises(ConfigurationError, match=r"`RankSampler.rank` must lie in \[0, "):
        RankSampler(5, rank, world)


@example(length=17, world=2, size=8)
@example(length=9, world=4, size=2)
@given(length=st.integers(1, 60), world=st.integers(1, 5), size=st.integers(1, 9))
def test_evaluation_batches_are_as_many_on_every_rank_and_hold_each_row_once(length, world, size):
    assume(length % world == 0 or (size > 1 and length >= world))
    ranks = [even_batches(range(length), rank, world, size) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {-(-length // world) // size + (-(-length // world) % size > 0)}
    shares = [list(chain(*batches)) for batches in ranks]
    assert undealt(shares) == list(range(length))
    assert all(1 <= len(batch) <= size for batches in ranks for batch in batches)


@pytest.mark.parametrize(("length", "world", "size"), [(5, 2, 1), (1, 2, 8)])
def test_rows_that_cannot_make_equally_many_batches_are_refused(length, world, size):
    for rank in range(world):
        with pytest.raises(ConfigurationError, match=f"{length} evaluation rows in batches of {size}"):
            even_batches(range(length), rank, world, size)
