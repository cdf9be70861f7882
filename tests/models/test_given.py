"""Models and tokenizers may be given as they are at hand: a path, a hub id, an object in memory."""

import warnings

import pytest
import torch
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaForCausalLM

from veto_pl import DistillationModule
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import (
    CharacterTokenizer,
    InMemory,
    InMemoryTokenizer,
    MovingAverage,
    Pretrained,
    PretrainedTokenizer,
    Pruned,
)
from veto_pl.models.assemble import load_models, load_student, load_tokenizer
from veto_pl.models.given import as_source, as_tokenizer, named_place
from veto_pl.objectives import GKD, SFT
from veto_pl.seams import ModelSource, Objective, TokenizerSource
from veto_pl.testing.tiny import ALPHABET, tiny_source

TOKENIZER = CharacterTokenizer(ALPHABET).load()


def test_what_is_at_hand_becomes_a_source(tmp_path):
    model = tiny_source().load()
    assert as_source("a/b", "x") == as_source(Pretrained("a/b"), "x") == Pretrained("a/b")
    assert as_source(tmp_path, "x") == Pretrained(str(tmp_path))
    assert as_source(model, "x").load() is model
    assert as_tokenizer("a/b", "x") == PretrainedTokenizer("a/b")
    assert isinstance(as_tokenizer(TOKENIZER, "x"), InMemoryTokenizer)
    assert Pruned("a/b", drop_layers=(0,)).source == Pretrained("a/b")
    assert MovingAverage("a/b").source == Pretrained("a/b")


def test_a_module_takes_objects_and_paths():
    student, teacher = (tiny_source(seed=seed).load() for seed in (0, 1))
    module = DistillationModule(GKD(), student, teacher, tokenizer=TOKENIZER)
    module.configure_model()
    assert module.student.model is student
    assert module.models.teacher.model is teacher
    assert module.tokenizer is not TOKENIZER, "a run changes its own copy"
    assert module.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert DistillationModule(SFT(), "a/b").student_source == Pretrained("a/b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"student": Pretrained}, r"`model.student`: given the class `Pretrained`, .* make one, `Pretrained\(\.\.\."),
        ({"student": LlamaForCausalLM}, r"given the class `LlamaForCausalLM`.*`LlamaForCausalLM\(\.\.\.\)`"),
        ({"teacher": 3}, r"`model.teacher`: given `3` \(int\), expected a `ModelSource`, a path, a hub id, or a model"),
        ({"teacher": torch.nn.Linear(1, 1)}, r"given `Linear\(.*\(Linear\), expected"),
        ({"reference": TOKENIZER}, r"`model.reference`: given `.*TokenizersBackend|PreTrainedTokenizerFast"),
        ({"tokenizer": tiny_source()}, r"`model.tokenizer`: given `RandomWeights.*expected a `TokenizerSource`"),
        ({"tokenizer": GPT2Tokenizer}, "given the class `GPT2Tokenizer`"),
        ({"teacher": "http://127.0.0.1:8123/v1"}, "got the address `http://127.0.0.1:8123/v1`.*`ServedTeacher`"),
    ],
)  # fmt: skip
def test_what_is_none_of_these_is_told_where_it_was_given(given, message):
    settings = {"student": tiny_source(), "teacher": tiny_source(seed=1)} | given
    with pytest.raises(ConfigurationError, match=message):
        DistillationModule(GKD(), **settings)


def test_a_model_in_memory_that_was_trained_is_told_to_whom_begins_with_it():
    model = tiny_source().load()
    source = InMemory(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.load()
        InMemory(model).load()
    with torch.no_grad():
        model.lm_head.weight += 1
    with pytest.warns(UserWarning, match="was written to since a run was given it last"):
        InMemory(model).load()
    copied = InMemory(model, copied=True).load()
    assert copied is not model
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)


def test_no_model_is_trained_and_frozen_at_once():
    model = tiny_source().load()
    with pytest.raises(ConfigurationError, match="The teacher is the same model in memory as the student"):
        load_models(InMemory(model), InMemory(model), TOKENIZER)
    models = load_models(InMemory(model), InMemory(model, copied=True), TOKENIZER)
    assert all(weight.requires_grad for weight in models.student.parameters())
    layers = len(model.model.layers)
    load_student(Pruned(model, drop_layers=(0,)), TOKENIZER)
    assert len(model.model.layers) == layers, "a pruned copy leaves the object alone"


def test_a_tokenizer_comes_with_its_model_in_memory(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    model = tiny_source().load()
    source = InMemory(model, AutoTokenizer.from_pretrained(tmp_path))
    assert load_tokenizer(source).get_vocab() == TOKENIZER.get_vocab()
    assert load_tokenizer(InMemory(model, str(tmp_path))).get_vocab() == TOKENIZER.get_vocab()
    with pytest.raises(ConfigurationError, match="`InMemory` brings no tokenizer"):
        load_tokenizer(InMemory(model))
    other = CharacterTokenizer(ALPHABET[::-1]).load()
    with pytest.raises(ConfigurationError, match="have different tokenizers"):
        load_models(tiny_source(), InMemory(tiny_source(seed=1).load(), other), TOKENIZER)


def test_a_skeleton_in_memory_is_another_object():
    model = tiny_source(seed=3).load()
    with torch.device("meta"):
        skeleton = InMemory(model).skeleton()
    assert {n: w.shape for n, w in skeleton.named_parameters()} == {n: w.shape for n, w in model.named_parameters()}
    assert all(weight.is_meta for weight in skeleton.parameters())
    assert InMemory(model).end_ids() == ()


@pytest.mark.parametrize(
    ("kind", "given", "place"),
    [
        (ModelSource, "Qwen/Qwen3-8B", "Pretrained"),
        (ModelSource, "./model", "Pretrained"),
        (ModelSource, "~/model", "Pretrained"),
        (TokenizerSource, "a/b", "PretrainedTokenizer"),
        (ModelSource, "Pretrained", None),
        (ModelSource, "Pretraned", None),
        (ModelSource, "my_package.sources.Mine", None),
        (ModelSource, "settings/student.yaml", None),
        (ModelSource, {"class_path": "a/b"}, None),
        (Objective, "a/b", None),
        (str, "a/b", None),
    ],
)
def test_a_path_in_a_configuration_is_no_class(kind, given, place):
    named = named_place(kind, given)
    assert (named and named["class_path"]) == (place and f"veto_pl.models.{place}")


def test_a_folder_beside_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "export").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named_place(ModelSource, "export")["init_args"] == {"path": "export"}
