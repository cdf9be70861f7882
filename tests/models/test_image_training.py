"""What of a student that reads images is trained: all of it, an adapter, or what is not frozen."""

import pytest
import torch

from tests import vision
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import Lora, PartlyFrozen
from veto_pl.models.assemble import load_models
from veto_pl.models.vision import image_weights
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Step
from veto_pl.testing.tiny import tiny_source

STEP = Step(0, 1)
ROWS = [([(16, 16, 1)], "what is it>"), ([], "no image here>"), ([(8, 16, 2), (28, 20, 3)], "two>")]
TOLD = ["a dog", "abc", "it is so"]


def backward(models, style):
    sequences = FromDataset()(vision.prompts(style, ROWS, TOLD), models, STEP)
    models.student(sequences, lambda hidden, lm: lm.project(hidden)[0]).logsumexp(-1).sum().backward()


def trained_names(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("style", vision.STYLES)
def test_an_adapter_on_all_linear_layers_is_one_on_the_decoder_of_text(style):
    pytest.importorskip("peft")
    models = load_models(Lora(vision.source(style), rank=2, seed=1), None, vision.tokenizer(style))
    names = trained_names(models.student)
    decoder = next(
        name for name, module in models.student.named_modules() if module is models.student.model.get_decoder()
    )
    assert names
    assert all(name.startswith(f"{decoder}.layers.") for name in names)
    assert len(names) == 2 * 2 * 7  # A and B, in two layers of seven matrices
    backward(models, style)
    assert all(weight.grad is not None for name, weight in models.student.named_parameters() if name in names)


def test_an_adapter_may_be_put_on_the_vision_tower_too():
    pytest.importorskip("peft")
    source = Lora(vision.source("llava"), targets=r".*vision_tower.*\.(q_proj|v_proj)", rank=2, seed=1)
    models = load_models(source, None, vision.tokenizer("llava"))
    names = trained_names(models.student)
    assert all("vision_tower" in name for name in names)
    backward(models, "llava")
    grads = {name: weight.grad for name, weight in models.student.named_parameters() if name in names}
    assert all(grad is not None for grad in grads.values())
    assert any(bool(grad.any()) for grad in grads.values())


@pytest.mark.parametrize("style", vision.STYLES)
def test_what_reads_images_can_be_frozen(style):
    models = load_models(PartlyFrozen(vision.source(style)), None, vision.tokenizer(style))
    frozen = {id(weight) for weight in image_weights(models.student.model)}
    assert {id(weight) for weight in models.student.parameters() if not weight.requires_grad} == frozen
    backward(models, style)
    assert all((weight.grad is None) == (id(weight) in frozen) for weight in models.student.parameters())


def test_a_projector_or_some_layers_can_be_frozen_alone():
    source = PartlyFrozen(vision.source("llava"), modules=("multi_modal_projector", "language_model.layers.0"))
    model = source.load()
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen
    assert all("multi_modal_projector" in name or "language_model.layers.0." in name for name in frozen)
    assert frozen == {name for name, weight in source.skeleton().named_parameters() if not weight.requires_grad}


def test_what_cannot_be_frozen_is_said():
    with pytest.raises(ConfigurationError, match="reads text only"):
        PartlyFrozen(tiny_source()).load()
    with pytest.raises(ConfigurationError, match="names `lm_haed`, which no module has"):
        PartlyFrozen(tiny_source(), modules=("lm_haed",)).load()
    with pytest.raises(ConfigurationError, match="leaves nothing to train"):
        PartlyFrozen(tiny_source(), modules=("model", "lm_head")).load()


def test_gradients_are_those_of_finite_differences_through_the_vision_tower():
    models = vision.models("llava")
    models.student.double()
    sequences = FromDataset()(vision.prompts("llava", ROWS, TOLD), models, STEP)
    drawn = torch.Generator().manual_seed(0)
    weights = torch.randn(len(sequences.token_ids()), 16, generator=drawn, dtype=torch.float64)

    def loss():
        return models.student.eval()(sequences, lambda hidden, lm: (weights * hidden).sum())

    loss().backward()
    layer = models.student.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    direction = torch.randn(layer.shape, generator=drawn, dtype=torch.float64)
    slope = float((layer.grad * direction).sum())
    with torch.no_grad():
        layer += 1e-3 * direction
        above = float(loss())
        layer -= 2e-3 * direction
        below = float(loss())
    assert abs(slope) > 1e-3
    assert (above - below) / 2e-3 == pytest.approx(slope, rel=1e-2)  # some norms compute in float32
