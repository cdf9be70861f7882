"""Models that read images against transformers' own forward, whatever stands beside a row."""

from dataclasses import replace

import pytest
import torch

from tests import vision
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models import Pretrained, Pruned, RandomWeights
from veto_pl.models.assemble import load_models
from veto_pl.models.layers import decoder_layers
from veto_pl.models.vision import image_weights
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.seams import Media, Step
from veto_pl.testing.tiny import tiny_source

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


def test_a_model_that_reads_text_only_refuses_a_row_with_an_image():
    text = load_models(tiny_source(vocab_size=len(vision.tokenizer("llava"))), None, vision.tokenizer("llava"))
    sequences = FromDataset()(vision.prompts("llava", ROWS, TOLD), text, STEP)
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM reads text only, and a row has an image"):
        logits_of(text.student, sequences)
    with pytest.raises(ConfigurationError, match="reads text only"):
        FromStudent(Sampling(max_new_tokens=2))(vision.prompts("llava", ROWS), text, STEP)
    routed = sequences.rows(torch.tensor([1]))  # as `Routed` hands out the rows without images
    assert torch.isfinite(logits_of(text.student, routed)).all()


def test_features_of_another_architecture_are_refused_by_name():
    models = vision.models("llava")
    batch = vision.prompts("qwen2_5_vl", ROWS[:1], TOLD[:1])
    with pytest.raises(ConfigurationError, match="LlavaForConditionalGeneration takes no `image_grid_thw`"):
        logits_of(models.student, FromDataset()(batch, models, STEP))


@pytest.mark.parametrize("style", vision.STYLES)
def test_more_placeholders_than_images_are_an_error_that_says_so(style):
    models = vision.models(style)
    batch = vision.prompts(style, [ROWS[2], ROWS[0]], TOLD[:2])
    other = vision.prompts(style, [ROWS[0], ROWS[0]])
    with pytest.raises(DataError, match="placeholders of a batch are not those of its images"):
        logits_of(models.student, FromDataset()(replace(batch, media=other.media), models, STEP))


@pytest.mark.parametrize("style", vision.STYLES)
def test_rows_without_images_are_read_as_in_a_batch_that_knows_of_none(style):
    models = vision.models(style)
    texts = [ROWS[1], ([], "another>")]
    batch = vision.prompts(style, texts, TOLD[:2])
    plain, empty = (FromDataset()(replace(batch, media=media), models, STEP) for media in (None, Media(({}, {}))))
    assert torch.equal(logits_of(models.student, plain), logits_of(models.student, empty))


@pytest.mark.parametrize("style", vision.STYLES)
def test_every_weight_that_reads_images_has_a_gradient_and_none_without_images(style):
    models = vision.models(style)
    tower = image_weights(models.student.model)
    assert 0 < len(tower) < len(list(models.student.parameters()))
    for rows, moves in ((ROWS, True), ([ROWS[1]], False)):
        models.student.zero_grad()
        sequences = FromDataset()(vision.prompts(style, rows, TOLD[: len(rows)]), models, STEP)
        models.student(sequences, lambda hidden, lm: lm.project(hidden)[0]).logsumexp(-1).sum().backward()
        assert all(weight.grad is not None for weight in models.student.parameters())
        assert any(bool(weight.grad.any()) for weight in tower) == moves


@pytest.mark.parametrize("style", vision.STYLES)
def test_a_saved_model_is_read_again_and_its_layers_are_those_of_the_text(style, tmp_path):
    models = vision.models(style)
    models.student.model.save_pretrained(tmp_path)
    source = Pretrained(str(tmp_path))
    for model in (source.load(), source.skeleton()):
        assert type(model) is type(models.student.model)
        name, layers = decoder_layers(model)
        assert "text_model" in name or "language_model" in name
        assert len(layers) == 2
    loaded = load_models(source, None, models.tokenizer)
    sequences = FromDataset()(vision.prompts(style, ROWS, TOLD), models, STEP)
    assert torch.equal(logits_of(loaded.student, sequences), logits_of(models.student, sequences))
    assert source.end_ids() == (models.tokenizer.eos_token_id,)
    pruned = load_models(Pruned(source, drop_layers=(0,)), None, models.tokenizer)
    assert torch.isfinite(logits_of(pruned.student, sequences)).all()
    assert loaded.student.positions == 256


def test_random_weights_refuse_a_field_of_a_part_that_it_does_not_have():
    given = vision.dimensions("llava")
    with pytest.raises(ConfigurationError, match=r"dimensions.text_config` names \['depht'\]"):
        RandomWeights("llava", given | {"text_config": given["text_config"] | {"depht": 2}}).config()
