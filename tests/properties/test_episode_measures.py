"""What an evaluation measures of episodes does not depend on how an episode is cut into rows."""

from dataclasses import replace

import torch
from hypothesis import given

from tests.properties.test_turns import cuttings, rows_of
from veto_pl.functional.reduction import sums_by_turn
from veto_pl.metrics.rollout_numbers import turns_of
from veto_pl.testing.tiny import tiny_models
from veto_pl.training.answered import Completions

MODELS = tiny_models()


def numbered(grid):
    """Rows whose ids follow from the tokens' values, with as many failed turns as a row has turns of even number."""
    rows = rows_of(grid)
    ids = torch.cat([rows.input_ids[:, :1], (grid.values.abs() * 7).long() % 20], 1)
    begun = [set(turns[turns > 0].tolist()) for turns in grid.turn_ids]
    failed = torch.tensor([sum(k % 2 == 0 for k in turns) for turns in begun])
    return replace(rows, input_ids=ids, failed_turns=failed, late_turns=failed)


def measured(grid, episodes):
    rows = numbered(grid)
    completions = Completions(rows)
    made = completions.generations(rows.prompts, MODELS, 1) if len(rows.prompts) == len(episodes) else None
    values = grid.values[grid.mask]
    return {
        "tokens": completions._own_tokens(),
        "counts": {name: counts.tolist() for name, counts in completions._turn_counts().items()},
        "sums": completions.sums(values).tolist(),
        "turns": [completions.turns(place) for place in range(len(episodes))],
        "by turn": [part.tolist() for part in sums_by_turn(grid.values, grid.mask, grid.turn_ids, 3)],
        "played": float(turns_of(rows).total),
        "prompts": completions.prompts,
        "rewards": None if made is None else made.rewards.tolist(),
    }


@given(case=cuttings())
def test_an_episode_measures_the_same_however_it_is_cut(case):
    episodes, grids = case
    first, *others = [measured(grid, episodes) for grid in grids]
    assert all(other == first for other in others)
    assert len(first["tokens"]) == len(episodes)
    assert first["prompts"] == [episode.prompt for episode in episodes]


@given(case=cuttings())
def test_measures_of_episodes_against_loops(case):
    episodes, grids = case
    for grid in grids:
        found = measured(grid, episodes)
        assert found["counts"]["turns"] == [len(episode.turns) for episode in episodes]
        assert found["counts"]["failed_turns"] == [len(episode.turns) // 2 for episode in episodes]
        own = [[k for k, turn in enumerate(episode.turns, 1) for token in turn if token.counts] for episode in episodes]
        assert found["turns"] == own
        assert found["played"] == sum(len(episode.turns) for episode in episodes)
