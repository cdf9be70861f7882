"""Models that read images against transformers' own forward, whatever stands beside a row."""

import pytest
import torch

from tests import vision
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Step

STEP = Step(0, 1)
ROWS = [([(16, 16, 1)], "what is it>"), ([], "no image here>"), ([(8, 16, 2), (28, 20, 3)], "two>")]
TOLD = ["a dog", "abc", "it is so"]


def logits_of(model, sequences):
    with torch.no_grad():
        return model.eval()(sequences, lambda hidden, lm: lm.project(hidden)[0])


def own_logits(style, model, row, told):
    """What transformers' model says of the completion, asked as its processor asks it."""
    pictures = [vision.picture(*size) for size in row[0]]
    given = {"images": [pictures] if style == "idefics3" else pictures} if pictures else {}
    made = vision.processor(style)(
        text=[vision.shown(style, row[1], len(pictures)) + told], return_tensors="pt", **given
    )
    with torch.no_grad():
        logits = model(**made).logits[0]
    return logits[-len(told) - 1 : -1]


@pytest.mark.parametrize("style", vision.STYLES)
def test_logits_are_those_of_transformers_alone_padded_and_beside_others(style):
    models = vision.models(style)
    expected = [own_logits(style, models.student.model, row, told) for row, told in zip(ROWS, TOLD, strict=True)]
    for places in ([0], [1], [2], [0, 1, 2], [2, 0], [1, 1, 0]):
        batch = vision.prompts(style, [ROWS[i] for i in places], [TOLD[i] for i in places])
        found = logits_of(models.student, FromDataset()(batch, models, STEP))
        assert torch.allclose(found, torch.cat([expected[i] for i in places]), atol=1e-5), places
