"""Every installed source of rollouts on tiny models: how the turns of its episodes are numbered, and end."""

from __future__ import annotations

import pytest
import torch

from veto_pl.seams import Models, RolloutSource
from veto_pl.testing.rows import written
from veto_pl.testing.test_rollouts import SOURCES, models, name

__all__ = ["models"]  # a fixture


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_turns_are_numbered_in_their_order(source: RolloutSource, models: Models) -> None:
    """Check that turns begin with 1 and rise, in a row and over the rows of an episode, and count behind the prompt."""
    for _, rows in written(source, models):
        if rows.turn_ids is None:
            assert rows.episodes is None, "`episodes` need `turn_ids`, which say what the rows of an episode hold."
            continue
        assert not (rows.loss_mask & (rows.turn_ids == 0)).any(), "`turn_ids` must be positive where `loss_mask` is."
        numbers = list(range(len(rows))) if rows.episodes is None else rows.episodes.tolist()
        for number in set(numbers):
            told = torch.cat([rows.turn_ids[row][rows.completion_mask[row]] for row in _places(numbers, number)])
            if not len(told):
                continue
            assert (told.diff() >= 0).all(), f"`turn_ids` must not fall within an episode, got {told.tolist()}."
            assert int(told[0]) == 1, f"The first turn of an episode must have number 1, got {int(told[0])}."
            prompts = {int(rows.prompt_rows[row]) for row in _places(numbers, number)}
            assert len(prompts) == 1, f"An episode must have one prompt, got the rows {sorted(prompts)}."


def _places(numbers: list[int], number: int) -> list[int]:
    """Return where a number stands."""
    return [place for place, other in enumerate(numbers) if other == number]


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_eos_ends_a_completion(source: RolloutSource, models: Models) -> None:
    """Check that no token behind an EOS was written, nor counts in one of several turns."""
    ends = torch.tensor(models.eos_ids)
    for _, rows in written(source, models):
        turns = rows.completion_mask.long() if rows.turn_ids is None else rows.turn_ids
        own = rows.completion_mask if rows.turn_ids is None else rows.loss_mask
        for row in range(len(rows)):
            for turn in range(1, int(turns[row].max()) + 1):
                ids = rows.input_ids[row][own[row] & (turns[row] == turn)]
                assert not torch.isin(ids[:-1], ends).any(), (
                    f"Turn {turn} of row {row} must end with its first EOS ({ends.tolist()}), got {ids.tolist()}."
                )
