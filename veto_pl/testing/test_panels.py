"""Every installed panel: one reading at least of each teacher that it asks, whose weights add up to 1."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from veto_pl.objectives.voices import attended
from veto_pl.parts.contexts import Privileged, SameText
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Models, Panel, Sequences, Step
from veto_pl.testing.examples import installed
from veto_pl.testing.tiny import prompt_batch, tiny_models

load_plugins()

STEP = Step(2, 10)
PANELS = installed(Panel)
each = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: type(panel).__name__)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models with a second teacher, under the names that examples of panels have for theirs."""
    made = tiny_models()
    other = tiny_models(teacher_seed=4).required_teacher()
    asked = {name for panel in PANELS for name in panel.asks(("teacher", "other"))} - {"teacher"}
    return dataclasses.replace(made, teachers=dict.fromkeys(sorted(asked), other))


def rollout(models: Models, rows: list[int]) -> Sequences:
    """Return the reference completions of some of four prompts, two of which name a teacher."""
    batch = prompt_batch(models, ["abc>", "d>", "efg>", "ka>"], ["cba", "d", "gfe", "ak"])
    names = ("teacher", "other", "", "teacher")
    examples = [
        dataclasses.replace(e, teacher=n, row={"teacher": n}) for e, n in zip(batch.examples, names, strict=True)
    ]
    named = dataclasses.replace(batch, examples=tuple(examples))
    return FromDataset()(named, models, STEP).rows(torch.tensor(rows, dtype=torch.int64))


@each
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0], []])
@pytest.mark.parametrize("context", [SameText(), Privileged("{completion}>{prompt}")], ids=["same", "hinted"])
def test_each_teacher_reads_and_the_weights_add_up(
    panel: Panel, rows: list[int], context: SameText | Privileged, models: Models
) -> None:
    """Check readings, weights and tokens, of some rows and of none."""
    sequences = rollout(models, rows)
    readings = panel(sequences, context, models, STEP)
    asked = panel.asks(models.teacher_names)
    assert tuple(dict.fromkeys(one.teacher for one in readings)) == asked, (
        "A panel gives a reading of each teacher that it `asks`, in that order, on every rank: without rows where a "
        "teacher has none."
    )
    read, voices = attended(sequences, readings, type(panel).__name__)  # refuses weights that do not add up
    kept = set(read.prediction_index.tolist())
    assert kept <= set(sequences.prediction_index.tolist())
    ids = sequences.token_ids()
    for one, voice in zip(readings, voices.voices, strict=True):
        expected = voice.of(read.token_ids())
        assert one.sequences.token_ids().tolist() == expected.tolist(), "A teacher reads the tokens that it stands for."
    assert torch.equal(sequences.token_ids(), ids), "A panel leaves the rollout as it is."


@each
def test_a_plan_needs_no_example(panel: Panel, models: Models) -> None:
    """Check that the panel of plans looks at no row."""
    planned, sequences = panel.planned(), dataclasses.replace(rollout(models, [0, 1]), prompts=None)
    readings = planned(sequences, SameText(), models, STEP)
    assert all(one.places is None for one in readings), "In a plan, a teacher reads everything or nothing."
