"""What is measured of turns and episodes does not depend on how an episode is cut into rows."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.functional.order import first_of_group
from veto_pl.functional.reduction import aggregated, sequence_mean_sum
from veto_pl.objectives import UniOPD
from veto_pl.parts.advantages import OrderConsistent, WithReward
from veto_pl.parts.credit import TeacherWeightedReward
from veto_pl.seams import PromptBatch, Sequences, Step
from veto_pl.seams.tokens import TokenGrid

STEP = Step(3, 10)


@dataclass(frozen=True)
class Token:
    """A token of an episode.

    Args:
        value: a number of it.
        counts: whether it is the agent's.
    """

    value: float
    counts: bool


@dataclass(frozen=True)
class Played:
    """An episode.

    Args:
        turns: the tokens of each turn, with those of the reply.
        reward: of the whole.
        prompt: whose completion it is.
    """

    turns: list[list[Token]]
    reward: float
    prompt: int


tokens = st.builds(Token, st.floats(-3, 3, width=32), st.booleans())
turns = st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=4)
played = st.lists(st.builds(Played, turns, st.sampled_from([0.0, 1.0]), st.integers(0, 1)), min_size=1, max_size=5)


@dataclass(frozen=True)
class Grid:
    values: torch.Tensor
    mask: torch.Tensor
    turn_ids: torch.Tensor
    episodes: torch.Tensor
    rewards: torch.Tensor
    prompts: torch.Tensor

    def credit_grid(self):
        return TokenGrid(
            student_logp=torch.zeros_like(self.values), teacher_logp=self.values, sampler_logp=None, mask=self.mask,
            prompt_rows=self.prompts, rewards=self.rewards, step=STEP, turn_ids=self.turn_ids, episodes=self.episodes,
        )  # fmt: skip

    def by_token(self, values):
        """The numbers of the tokens that count, in the order of episodes and turns."""
        return values.expand_as(self.mask)[self.mask]


def cut(episodes, where):
    """Put episodes into rows; `where(i, k)` says whether a row begins with turn k of episode i."""
    rows = []
    for i, episode in enumerate(episodes):
        for k, turn in enumerate(episode.turns):
            if k == 0 or where(i, k):
                rows.append((i, []))
            rows[-1][1].extend((k + 1, token) for token in turn)
    width = max(len(row) for _, row in rows)

    def grid(of, dtype):
        lines = [[of(k, token) for k, token in row] + [0] * (width - len(row)) for _, row in rows]
        return torch.tensor(lines, dtype=dtype)

    of = torch.tensor([i for i, _ in rows])
    return Grid(
        values=grid(lambda k, token: token.value, torch.float64),
        mask=grid(lambda k, token: token.counts, torch.bool),
        turn_ids=grid(lambda k, token: k, torch.int64),
        episodes=100 - 7 * of,  # any names will do
        rewards=torch.tensor([episodes[i].reward for i in of], dtype=torch.float64),
        prompts=torch.tensor([episodes[i].prompt for i in of]),
    )


def whole(episodes):
    return cut(episodes, lambda i, k: False)


def by_turn(episodes):
    return cut(episodes, lambda i, k: True)


@st.composite
def cuttings(draw):
    episodes = draw(played)
    places = draw(st.sets(st.tuples(st.integers(0, 4), st.integers(1, 3))))
    return episodes, [whole(episodes), by_turn(episodes), cut(episodes, lambda i, k: (i, k) in places)]


def means(groups):
    counted = [[token.value for token in group if token.counts] for group in groups]
    return [math.fsum(values) / len(values) for values in counted if values]


@pytest.mark.parametrize("aggregation", ["token", "turn", "episode"])
@given(case=cuttings())
def test_measures_against_loops_however_episodes_are_cut(aggregation, case):
    episodes, grids = case
    groups = {
        "token": [[token] for episode in episodes for turn in episode.turns for token in turn],
        "turn": [turn for episode in episodes for turn in episode.turns],
        "episode": [[token for turn in episode.turns for token in turn] for episode in episodes],
    }[aggregation]
    expected = means(groups)
    for grid in grids:
        values = grid.values.masked_fill(~grid.mask, math.nan).requires_grad_()
        total, weight = aggregated(aggregation, values, grid.mask, grid.turn_ids, grid.episodes)
        assert weight == len(expected)
        assert float(total) == pytest.approx(math.fsum(expected), abs=1e-12)
        (gradient,) = torch.autograd.grad(total, values)
        assert (gradient[~grid.mask] == 0).all()
        assert (gradient[grid.mask] > 0).all()


@given(case=cuttings())
def test_rows_weigh_alike_only_where_they_are_asked_to(case):
    for grid in case[1]:
        found = aggregated("sequence", grid.values, grid.mask, grid.turn_ids, grid.episodes)
        assert found == sequence_mean_sum(grid.values, grid.mask)


@pytest.mark.parametrize("aggregation", ["turn", "episode"])
@given(case=cuttings())
def test_without_turns_a_row_is_a_turn_and_an_episode_to_the_bit(aggregation, case):
    grid = case[1][1]
    assert aggregated(aggregation, grid.values, grid.mask) == sequence_mean_sum(grid.values, grid.mask)


def test_no_rows_have_no_turns():
    nothing = torch.zeros(0, 3)
    found = aggregated("turn", nothing, nothing.bool(), nothing.long(), torch.zeros(0, dtype=torch.int64))
    assert [float(value) for value in found] == [0, 0]


CREDITS = [
    WithReward(),
    TeacherWeightedReward(),
    OrderConsistent(),
    OrderConsistent(mode="minmax", outlier=None),
    OrderConsistent(method="mask", outlier=1.0),
]


@pytest.mark.parametrize("credit", CREDITS, ids=repr)
@given(case=cuttings())
def test_what_compares_completions_counts_episodes(credit, case):
    """A credit of episodes is the same for every cut, so a long episode weighs no more than a short one."""
    _, (one, *others) = case
    expected = one.by_token(credit(one.credit_grid()))
    for other in others:
        torch.testing.assert_close(other.by_token(credit(other.credit_grid())), expected, rtol=0, atol=1e-12)


def test_a_long_episode_counts_once():
    long, short = [[Token(0.0, True)]] * 3, [[Token(0.0, True)]]
    grid = by_turn([Played(long, 1.0, 0), Played(short, 0.0, 0)])
    better = WithReward()(grid.credit_grid())[:, 0]
    assert better.tolist() == [0.5, 0.5, 0.5, -0.5]


def rows_of(grid):
    """A rollout with the rows of a grid, behind a prompt of one token."""
    count = len(grid.mask)
    before = torch.zeros(count, 1, dtype=torch.int64)
    none = torch.zeros(2, 0, dtype=torch.int64)
    prompts = PromptBatch(none.new_zeros(2, 1), none.new_ones(2, 1).bool(), none, none.bool())
    turn_ids = torch.cat([before, grid.turn_ids], 1)
    return Sequences(
        input_ids=torch.zeros_like(turn_ids), attention_mask=torch.cat([before == 0, grid.turn_ids > 0], 1),
        loss_mask=torch.cat([before > 0, grid.mask], 1), prompt_rows=grid.prompts, prompts=prompts,
        on_policy=torch.ones(count, dtype=torch.bool), rewards=grid.rewards, turn_ids=turn_ids, episodes=grid.episodes,
    )  # fmt: skip


@given(case=cuttings())
def test_a_balance_keeps_or_leaves_out_whole_episodes(case):
    _, grids = case
    kept = []
    for grid in grids:
        left = UniOPD(balance=1.0).select(rows_of(grid), STEP).loss_mask[:, 1:]
        kept.append(grid.by_token(left))
    assert all(torch.equal(kept[0], other) for other in kept[1:])


@given(groups=st.lists(st.integers(0, 3), max_size=6), data=st.data())
def test_the_first_of_a_group_against_a_loop(groups, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups)))
    expected = [
        next((j for j, other in enumerate(groups) if other == group and among[j]), i) for i, group in enumerate(groups)
    ]
    found = first_of_group(torch.tensor(groups, dtype=torch.int64), torch.tensor(among, dtype=torch.bool))
    assert found.tolist() == expected
