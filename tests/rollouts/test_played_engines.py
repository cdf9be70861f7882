"""Episodes by other engines than the own loop: greedy dialogues are the same, turn by turn."""

import pytest
import torch

from veto_pl.environments import TryAgain
from veto_pl.rollouts import Played, Sampling, Transformers
from veto_pl.seams import Step
from veto_pl.testing.rows import difference, tiny_prompts
from veto_pl.testing.tiny import tiny_models

GREEDY = Sampling(temperature=0.0, max_new_tokens=8, num_completions=2, stop=tuple("acegikmo"))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_dialogues_by_generate_are_those_of_the_own_loop(kind):
    models = tiny_models(kind)
    ours, theirs = (
        Played(TryAgain(said="no>"), GREEDY, max_turns=4, max_tokens=60, **engine)(
            tiny_prompts(models), models, Step(3, 10)
        )
        for engine in ({}, {"engine": Transformers()})
    )
    assert ours.turn_ids.max() == 4
    assert difference(ours, theirs) == ""
    assert torch.equal(ours.loss_mask, theirs.loss_mask)
    assert (theirs.completion_mask & ~theirs.loss_mask).any()
