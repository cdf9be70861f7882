"""What a teacher that reads text only is given of rows with images."""

from dataclasses import asdict, replace

import pytest
import torch

from tests import vision
from veto_pl.data import ChatTemplate, PlainTemplate
from veto_pl.data.collate import Collator
from veto_pl.data.image_reader import ImageReader
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_models
from veto_pl.objectives import BRTS, Distill
from veto_pl.parts.contexts import Privileged, SameText
from veto_pl.parts.own_template import OwnTemplate
from veto_pl.parts.without_images import WithoutImages
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.rollouts.stored_rows import StoredRow, as_sequences, group_by_prompt
from veto_pl.seams import Example, Step
from veto_pl.testing.tiny import tiny_source

STEP = Step(0, 1)
ROWS = [([(16, 16, 1)], "what is it>"), ([], "no image here>"), ([(8, 16, 2), (28, 20, 3)], "two>")]
TOLD = ["a dog", "abc", "it is so"]


def models_of(style):
    teacher = tiny_source(seed=1, vocab_size=len(vision.tokenizer(style)))
    return load_models(vision.source(style), teacher, vision.tokenizer(style))


@pytest.mark.parametrize("style", vision.STYLES)
def test_the_teacher_reads_the_text_and_the_completions_alone(style):
    models = models_of(style)
    sequences = FromDataset()(vision.prompts(style, ROWS, TOLD), models, STEP)
    read = WithoutImages()(sequences, models, STEP)
    assert torch.equal(read.token_ids(), sequences.token_ids())
    texts = [models.tokenizer.decode(ids[mask]) for ids, mask in zip(read.input_ids, read.attention_mask, strict=True)]
    lines = [text.replace("\n", "") for text in texts]  # `idefics3` writes ends of lines between the tiles
    assert lines == [text + told for (_, text), told in zip(ROWS, TOLD, strict=True)]
    assert read.prompts.media is None
    only_text = FromDataset()(vision.prompts(style, ROWS[1:2], TOLD[1:2]), models, STEP)
    assert WithoutImages()(only_text, models, STEP) is only_text


def test_an_objective_learns_from_a_teacher_that_sees_no_images():
    models, batch = models_of("qwen2_5_vl"), vision.prompts("qwen2_5_vl", ROWS, TOLD)
    objective = Distill(rollout=FromDataset(), context=WithoutImages())
    rollouts = {source: source(batch, models, STEP) for source in objective.sources}
    objective.loss(rollouts, models, STEP).terms["loss"].total.backward()
    assert all(weight.grad is not None for weight in models.student.parameters())
    with pytest.raises(ConfigurationError, match=r"reads text only.*WithoutImages"):
        replace(objective, context=SameText()).loss(rollouts, models, STEP)


def test_a_prompt_of_nothing_but_images_is_refused():
    models = models_of("llava")
    sequences = FromDataset()(vision.prompts("llava", [([(8, 8, 1)], "")], ["a"]), models, STEP)
    with pytest.raises(ConfigurationError, match="leaves nothing of a prompt"):
        WithoutImages()(sequences, models, STEP)
    with pytest.raises(ConfigurationError, match="must be a regular expression"):
        WithoutImages(around="(")


def read_by(style, template, rows):
    """Prompts of rows with images as a run reads them, and the models with what reads them."""
    models = vision.models(style, style)
    reader = ImageReader(models.tokenizer, given=vision.processor(style))
    examples = [Example(text, "ok", images=tuple(vision.picture(*one) for one in images)) for images, text in rows]
    return Collator(tokenizer=models.tokenizer, template=template, images=reader)(examples), replace(
        models, images=reader
    )


@pytest.mark.parametrize("style", vision.STYLES)
def test_a_hint_keeps_the_images_where_they_are(style):
    plain, hinted = (ChatTemplate(user=user) for user in ("{prompt}", "the answer is ok. {prompt}"))
    batch, models = read_by(style, plain, ROWS)
    expected, _ = read_by(style, hinted, ROWS)
    sequences = FromDataset()(batch, models, STEP)
    for context in (
        Privileged("the answer is {completion}. {prompt}"),
        OwnTemplate({"teacher": hinted}),
    ):
        told = context(sequences, models, STEP)
        assert told.prompts.media is not None
        for row in range(len(ROWS)):
            ids = told.prompts.input_ids[row][told.prompts.attention_mask[row]]
            assert torch.equal(ids, expected.input_ids[row][expected.attention_mask[row]])
            assert told.prompts.media.of_rows[row].keys() == expected.media.of_rows[row].keys()
        with torch.no_grad():
            found, whole = (
                models.teacher(rows, lambda hidden, lm: lm.project(hidden)[0])
                for rows in (told, FromDataset()(expected, models, STEP))
            )
        assert torch.allclose(found, whole, atol=1e-5)


def test_the_chosen_completions_of_a_teacher_are_written_behind_images():
    batch, models = read_by("qwen2_5_vl", ChatTemplate(), ROWS)
    short = Sampling(max_new_tokens=3)
    objective = BRTS(sampling=short, teacher_sampling=replace(short, num_completions=2), hint="{prompt} {completion}")
    rollouts = {source: source(batch, models, STEP) for source in objective.sources}
    objective.loss(rollouts, models, STEP)
    assert all(rows.prompts.media is not None for rows in rollouts.values())


def test_a_hint_that_would_lose_an_image_is_refused():
    models = vision.models("llava", "llava")
    sequences = FromDataset()(vision.prompts("llava", ROWS, TOLD), models, STEP)
    with pytest.raises(ConfigurationError, match="`Privileged` makes the text of a prompt anew"):
        Privileged("{prompt} hint", template=PlainTemplate())(sequences, models, STEP)


def test_replayed_rows_keep_their_images():
    models, batch = vision.models("qwen3_vl"), vision.prompts("qwen3_vl", ROWS)
    fresh = FromStudent(Sampling(max_new_tokens=4, num_completions=2))(batch, models, STEP)
    groups = [tuple(StoredRow(**asdict(row)) for row in group) for group in group_by_prompt(fresh, 0)]
    again = as_sequences(groups, batch)
    with torch.no_grad():
        one, other = (models.student.eval()(rows, lambda hidden, lm: lm.project(hidden)[0]) for rows in (fresh, again))
    assert torch.allclose(one, other, atol=1e-5)
