"""Every installed source of scores: distributions of the tokens that were written, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from veto_pl.core.scores import TopKScores
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Answers, Models, ScoreSource, Sequences, Step
from veto_pl.testing.examples import installed
from veto_pl.testing.tiny import prompt_batch, tiny_models

load_plugins()

STEP = Step(2, 10)
ROUNDING = 1e-5
"""Of a sum of probabilities in float32."""


@dataclass(frozen=True)
class Even(ScoreSource):
    """All ids alike, so that the laws are tried where no other source can be made without a file or a server."""

    def __call__(self, sequences: Sequences, tokenizer: Any) -> Answers:
        return Answers(TopKScores.uniform(tuple(sequences.input_ids.shape), 3, sampled=True))

    def of_nothing(self) -> TopKScores:
        return TopKScores.uniform((0,), 3, sampled=True)


SOURCES = (Even(), *installed(ScoreSource))
each = pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models of a run."""
    return tiny_models()


def rollout(models: Models) -> Sequences:
    """Return reference completions of several lengths."""
    return FromDataset()(prompt_batch(models, ["abc>", "d>", "efg>"], ["cba", "d", "gfe"]), models, STEP)


def scored(source: ScoreSource, rows: Sequences, models: Models) -> TopKScores:
    """Return what a source says of the tokens that were written, [N]; raise `AssertionError` for another shape."""
    found = source(rows, models.tokenizer).scores
    assert found.ids.shape[:-1] == rows.input_ids.shape, (
        f"`{type(source).__name__}` gives ids of shape {list(found.ids.shape)}, expected [B, T, k] beside ids of shape "
        f"{list(rows.input_ids.shape)}: a score stands at the token that it is about."
    )
    assert found.logp.shape == (*found.ids.shape[:-1], found.ids.shape[-1] + 1), "k log-probabilities, and the tail's"
    return found[rows.completion_mask]


@each
def test_scores_are_distributions_over_ids_and_a_tail(source: ScoreSource, models: Models) -> None:
    """Check that probabilities add up to 1, and that ids are distinct ones of the vocabulary."""
    found = scored(source, rollout(models), models)
    torch.testing.assert_close(found.logp.exp().sum(-1), torch.ones(len(found.ids)), rtol=0, atol=ROUNDING)
    assert ((found.ids >= 0) & (found.ids < models.student.vocab_size)).all(), "ids of the run's vocabulary"
    ordered = found.ids.sort(-1).values
    assert (ordered[:, 1:] != ordered[:, :-1]).all(), "an id stands once"
    if found.sampled_logp is not None:
        assert (found.sampled_logp <= ROUNDING).all(), "a log-probability of the token that was written"


@each
def test_a_row_is_scored_alike_whatever_stands_beside_it(source: ScoreSource, models: Models) -> None:
    """Check that rows in another order, and a row alone, have the scores that they had."""
    rows = rollout(models)
    known = scored(source, rows, models)
    place = rows.completion_mask.nonzero()[:, 0]
    for order in ([2, 0, 1], [1]):
        index = torch.tensor(order)
        found = scored(source, rows.rows(index), models)
        expected = torch.cat([(place == row).nonzero()[:, 0] for row in order])
        torch.testing.assert_close(found.logp, known.logp[expected], rtol=0, atol=ROUNDING)
        assert torch.equal(found.ids, known.ids[expected])


@each
def test_nothing_has_the_shape_of_something(source: ScoreSource, models: Models) -> None:
    """Check that `of_nothing` tells k, temperature and whether the written token is kept; no rows are no error."""
    rows = rollout(models)
    some, none = scored(source, rows, models), source.of_nothing()
    assert (len(none.ids), none.ids.shape[-1], none.temperature) == (0, some.ids.shape[-1], some.temperature)
    assert (none.sampled_logp is None) == (some.sampled_logp is None)
    nobody = rows.rows(torch.zeros(0, dtype=torch.int64))
    assert len(source(nobody, models.tokenizer).scores.ids) == 0
