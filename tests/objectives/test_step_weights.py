"""Weights of turns against the paper's product, and their limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.test_turns import cuttings
from veto_pl.functional.order import group_advantage
from veto_pl.functional.step_weights import step_weights
from veto_pl.objectives import OPD, SOD
from veto_pl.parts.advantages import LogRatio, WithReward
from veto_pl.parts.credit import StepWeighted

EPSILON = 1e-6


def by_product(turns, cap):
    """The weights of the turns of an episode as the paper multiplies them; a turn is a list of log-ratios."""
    distances = [math.fsum(map(abs, turn)) / len(turn) for turn in turns]
    weights = []
    for k in range(len(turns)):
        factor = math.prod((distances[j] + EPSILON) / (distances[j + 1] + EPSILON) for j in range(k))
        weights.append(1.0 if k == 0 else min(factor, 1 + cap))
    return weights


@given(case=cuttings(), cap=st.sampled_from([0.0, 0.2, 3.0]))
def test_the_weights_are_the_papers_however_episodes_are_cut(case, cap):
    episodes, grids = case
    expected = []
    for episode in episodes:
        turns = [[token.value for token in turn if token.counts] for turn in episode.turns]
        weights = iter(by_product([turn for turn in turns if turn], cap))
        expected += [weight for turn in turns if turn for weight in [next(weights)] * len(turn)]
    for grid in grids:
        found = step_weights(grid.values, grid.mask, grid.turn_ids, grid.episodes, cap)
        torch.testing.assert_close(
            grid.by_token(found), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )
        assert (found[~grid.mask] == 1).all()


def test_the_published_figures():
    ratio, turns = torch.tensor([[0.2, -0.4, 0.1]], dtype=torch.float64), torch.tensor([[1, 2, 3]])
    every = torch.ones(1, 3, dtype=torch.bool)
    assert step_weights(ratio, every, turns, None, 0.2)[0].tolist() == pytest.approx([1, 0.5, 1.2], rel=1e-5)


@pytest.mark.parametrize("cap", [0.0, 0.2])
def test_turns_that_agree_alike_weigh_alike(cap):
    ratio = torch.tensor([[0.3, -0.3, 0.3, -0.3]])
    turns, every = torch.tensor([[1, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(step_weights(ratio, every, turns, None, cap), torch.ones(1, 4))


@given(case=cuttings())
def test_single_turns_keep_their_credit(case):
    """SOD on single turns is on-policy distillation with the reward of GRPO."""
    grid = case[1][1]
    plain = WithReward(LogRatio(), scale="std")
    alone = grid.credit_grid()
    alone = type(alone)(**{**vars(alone), "turn_ids": None, "episodes": None})
    assert torch.equal(SOD().credit()(alone), plain(alone))
    assert SOD(reward_weight=0.0).credit() == StepWeighted(OPD().credit(), 0.2)


@given(
    rewards=st.lists(st.tuples(st.integers(0, 2), st.floats(-2, 2, width=32), st.booleans()), min_size=1, max_size=8)
)
def test_grpos_credit_against_a_loop(rewards):
    groups, values, among = (torch.tensor(column) for column in zip(*rewards, strict=True))
    found = group_advantage(values.double(), groups, among)
    for i, (group, value, _) in enumerate(rewards):
        members = [other for name, other, counts in rewards if name == group and counts]
        expected = 0.0
        if len(members) > 1:
            mean = math.fsum(members) / len(members)
            deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in members) / (len(members) - 1))
            expected = (value - mean) / (deviation + 1e-6)
        assert float(found[i]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
