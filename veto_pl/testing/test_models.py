"""Every installed source of models or tokenizers: the same model each time, whose plan without weights fits it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from veto_pl.models.assemble import load_models
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.plugins import load_plugins
from veto_pl.seams import ModelSource, Step, TokenizerSource
from veto_pl.testing.examples import installed
from veto_pl.testing.rows import global_numbers, global_seed
from veto_pl.testing.tiny import ALPHABET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

load_plugins()

MODELS, TOKENIZERS = installed(ModelSource), installed(TokenizerSource)
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")


def name(instance: object) -> str:
    """Return the name of a test case: that of its class."""
    return type(instance).__name__


each = pytest.mark.parametrize("source", MODELS, ids=name)
each_tokenizer = pytest.mark.parametrize("source", TOKENIZERS, ids=name)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers that are saved, by name."""
    return {key: value.detach() for key, value in model.state_dict().items()}


def layout(model: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the dtype and shape of each weight, by name."""
    return {key: (value.dtype, tuple(value.shape)) for key, value in weights(model).items()}


def assert_fits(found: Mapping[str, Any], expected: Mapping[str, Any], what: str, remedy: str) -> None:
    """Assert that two models have weights of the same names, dtypes and shapes."""
    wrong = sorted(found.keys() ^ expected.keys()) or [key for key in found if found[key] != expected[key]]
    if wrong:
        one = wrong[0]
        raise AssertionError(
            f"{what} differs from `load` in {len(wrong)} weights, for instance `{one}`: {found.get(one, 'missing')}, "
            f"and {expected.get(one, 'missing')}. {remedy}"
        )


@each
def test_a_model_is_the_same_each_time(source: ModelSource) -> None:
    """Check that `load` gives the same weights on every rank, and leaves the global generators alone."""
    with global_seed(0):
        before = global_numbers()
        one = weights(source.load())
        assert global_numbers() == before, "`load` must leave the generators of torch, numpy and Python as they were."
    with global_seed(1):
        other = weights(source.load())
    moved = [key for key, value in one.items() if not torch.equal(value, other[key])]
    assert not moved, f"`load` gave other weights the second time, for instance of `{moved[0]}`."


@each
def test_a_model_is_on_the_cpu(source: ModelSource) -> None:
    """Check that weights are on the CPU where another device is the default, as it is inside of a run."""
    try:
        with torch.device("meta"):
            model = source.load()
    except Exception as error:
        raise AssertionError(
            f"`load` fails where another device is the default: {error!r}. Say `device='cpu'` where it makes tensors."
        ) from error
    found, expected = weights(model), weights(source.load())
    elsewhere = [key for key, value in found.items() if value.device.type != "cpu"]
    assert not elsewhere, f"The weights must be on the CPU, also where another device is the default: `{elsewhere[0]}`."
    moved = [key for key, value in found.items() if not torch.equal(value, expected[key])]
    assert not moved, (
        f"`load` gives other weights where another device is the default, for instance of `{moved[0]}`. Say "
        "`device='cpu'` where it makes tensors."
    )


@each
def test_a_skeleton_has_the_shapes_of_the_model(source: ModelSource) -> None:
    """Check that `skeleton`, also on the meta device, has the names, dtypes and shapes of `load`."""
    remedy = "Override `skeleton` so that it builds the same model with any weights."
    expected = layout(source.load())
    assert_fits(layout(source.skeleton()), expected, "`skeleton`", remedy)
    with torch.device("meta"):
        assert_fits(layout(source.skeleton()), expected, "`skeleton` on the meta device", remedy)


@each
def test_a_configuration_is_that_of_the_model(source: ModelSource) -> None:
    """Check that `config` has the sizes of the model, which plans and checks rely on."""
    config, model = source.config(), source.load()
    for size in SIZES:
        told, true = getattr(config, size, None), getattr(model.config, size, None)
        assert told == true, f"`config().{size}` is {told}, but the model of `load` has {true}."
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == config.vocab_size, f"`config().vocab_size` is {config.vocab_size}, but there are {rows} embeddings."


@each
def test_a_model_predicts(source: ModelSource) -> None:
    """Check that the model has finite logits for every id."""
    model: PreTrainedModel = source.load().eval()
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 1]])).logits
    assert tuple(logits.shape) == (1, 3, source.config().vocab_size), f"Logits of the shape {tuple(logits.shape)}."
    assert logits.isfinite().all(), "The logits must be finite."


@each
def test_stored_weights_are_those_of_the_model(source: ModelSource) -> None:
    """Check that weights that are read in parts are those of `load`."""
    stored = source.stored()
    if stored is None:
        return
    model = source.load()
    assert stored.match(model), "`stored` must know the weights of `load` by their names."
    known = weights(model)
    for key, part in stored.parts(dict.fromkeys(dict(model.named_parameters()))):
        assert torch.equal(part.to(known[key].dtype), known[key]), f"`stored` has another `{key}` than `load`."


@each
def test_what_a_source_says_of_texts_can_be_used(source: ModelSource) -> None:
    """Check the ids that end a text, and the place of the tokenizer."""
    place = source.tokenizer_source
    assert place is None or "pretrained_model_name_or_path" in place, (
        f"`tokenizer_source` must be the keyword arguments of `AutoTokenizer.from_pretrained`, got {place!r}."
    )
    size = source.config().vocab_size
    assert all(0 <= end < size for end in source.end_ids()), f"`end_ids` must be below {size}, got {source.end_ids()}."


@each
def test_a_model_that_follows_says_that_it_moves(source: ModelSource) -> None:
    """Check that `moves` is set where `follow` is overridden, without which a checkpoint would lack the teacher."""
    follows = type(source).follow is not ModelSource.follow
    assert source.moves == follows, (
        f"`{name(source)}` has {'a' if follows else 'no'} `follow` of its own, but `moves` is {source.moves}."
    )


@pytest.mark.parametrize("source", [x for x in MODELS if type(x).follow is not ModelSource.follow], ids=name)
def test_a_teacher_follows_the_student_alone(source: ModelSource) -> None:
    """Check that `follow` keeps the teacher finite, and changes neither the student nor what has a gradient."""
    models = load_models(source, source, CharacterTokenizer(ALPHABET).load())
    teacher, student = models.required_teacher(), models.student
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1)
    before, trained = copy.deepcopy(weights(student)), {key: w.requires_grad for key, w in student.named_parameters()}
    source.follow(teacher, student, Step(0, 10))
    assert all(value.isfinite().all() for value in weights(teacher).values()), "A weight of the teacher is not finite."
    changed = [key for key, value in weights(student).items() if not torch.equal(value, before[key])]
    assert not changed, f"`follow` must leave the student alone, but has changed `{changed[0]}`."
    assert {key: weight.requires_grad for key, weight in student.named_parameters()} == trained


@each_tokenizer
def test_a_tokenizer_is_the_same_each_time(source: TokenizerSource) -> None:
    """Check that `load` gives tokenizers with the same ids, and one's own, which a run may change."""
    one, other = source.load(), source.load()
    assert one is not other, "`load` must give each run a tokenizer of its own."
    assert one.get_vocab() == other.get_vocab(), "`load` gave a tokenizer with other ids the second time."


@each_tokenizer
def test_a_tokenizer_ends_and_fills_up_texts(source: TokenizerSource) -> None:
    """Check that there is an id that ends a text, and that no id lies beyond the vocabulary."""
    tokenizer = source.load()
    assert tokenizer.eos_token_id is not None, "The tokenizer has no token that ends a text. Set its `eos_token`."
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert all(0 <= one < len(tokenizer) for one in ids), f"The ids must be below {len(tokenizer)}, got {ids}."
