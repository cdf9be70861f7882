"""Every objective trains on rows with images beside rows of text, on completions that its own sources write."""

from dataclasses import replace

import pytest
import torch

from tests import vision
from veto_pl.core.nested import walk
from veto_pl.data import ChatTemplate
from veto_pl.data.collate import Collator
from veto_pl.data.image_reader import ImageReader
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_models
from veto_pl.seams import Example, Panel, Step
from veto_pl.testing.examples import first_examples
from veto_pl.training.measured import played_by

STEP = Step(0, 4)
STYLE = "qwen2_5_vl"
OBJECTIVES = first_examples(longest=3)
ROWS = [([(16, 16, 1)], "what is it"), ([], "no image here"), ([(8, 16, 2), (28, 20, 3)], "two")]


def prepared(objective):
    """Models with all that an objective may ask for, and prompts of which two have images."""
    asked = {
        name for _, part in walk(objective, derived=True) if isinstance(part, Panel) for name in part.asks(("teacher",))
    }
    others = {name: vision.source(STYLE, 3) for name in sorted(asked - {"teacher"})}
    made = load_models(
        vision.source(STYLE), vision.source(STYLE, 1), vision.tokenizer(STYLE), reference=vision.source(STYLE, 2),
        teachers=others, objective=objective,
    )  # fmt: skip
    reader = ImageReader(made.tokenizer, given=vision.processor(STYLE))
    examples = [
        Example(
            text,
            "a dog",
            {"feedback": "no", "teacher": "teacher"},
            images=tuple(vision.picture(*one) for one in images),
        )
        for images, text in ROWS
    ]
    batch = Collator(tokenizer=made.tokenizer, template=ChatTemplate(), images=reader)(examples)
    made.memories.claim(objective.sources)
    return replace(made, images=reader), batch


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains_on_rows_with_images(name):
    objective = OBJECTIVES[name].active(STEP)
    models, batch = prepared(objective)
    if played_by(objective) is not None:
        with pytest.raises(ConfigurationError, match="images"):
            objective.sources[0](batch, models, STEP)
        return
    rollouts = {source: source(batch, models, STEP) for source in objective.sources}
    if objective.needs_rewards:
        rollouts = {
            source: replace(rows, rewards=(torch.arange(len(rows)) % 2).float()) for source, rows in rollouts.items()
        }
    assert all(rows.prompts.media is not None for rows in rollouts.values())
    terms = objective.loss(rollouts, models, STEP).terms.values()
    total = sum(term.total / term.weight.clamp_min(1) for term in terms)
    assert torch.isfinite(total)
    total.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in models.student.parameters())
