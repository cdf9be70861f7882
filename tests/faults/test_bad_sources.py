"""Places and descriptions that lead to no model."""

import struct

from veto_pl.models import Gguf, Pretrained, Pruned, RandomWeights
from veto_pl.testing.tiny import tiny_source

from .bad_inputs import Case, each, refuse
from .bad_models import good, nothing


def loaded(path, **settings):
    return lambda folder: Pretrained(path.replace("FOLDER", str(folder)), **settings).load()


PLACES = [
    Case(f"a model at {place[:30]!r}", nothing, loaded(place), ("No model could be read",))
    for place in (
        "",
        "/no/such/folder",
        "a\0b",
        "x/y/z",
        "../../x",
        "some/model",
        "gpt2",
        "FOLDER/nope",
        "x" * 2000,
        "FOLDER",
        "~",
        ".",
    )
]
PLACES += [
    Case("a model at an address", nothing, loaded("https://example.org/x"), ("https://example.org/x", "ServedTeacher")),
    Case("a folder that is a file", good, loaded("FOLDER/config.json"), ("config.json",)),
    Case("a revision without a hub", nothing, loaded("some/model", revision="x" * 50), ("some/model",)),
]


def gguf(name, cache="FOLDER/cache"):
    return lambda folder: Gguf(
        path=str(folder / name), cache=cache.replace("FOLDER", str(folder.parent / "kept"))
    ).load()


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
GGUFS = [
    Case(f"GGUF: {name}", lambda f, d=data: (f / "x.gguf").write_bytes(d), gguf("x.gguf"), ("No model", "x.gguf"))
    for name, data in {
        "nothing": b"",
        "its name": b"GGUF",
        "half a header": HEADER[:10],
        "an empty header": HEADER,
        "another version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        "a million tensors": b"GGUF" + struct.pack("<IQQ", 3, 10**12, 10**12),
        "another order of bytes": b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
        "a text": b"hello" * 20,
        "safetensors": struct.pack("<Q", 2) + b"{}",
        "zeros": bytes(1000),
    }.items()
]
GGUFS += [
    Case("GGUF: no file", nothing, lambda f: Gguf(path=str(f)).config(), ("found 0 in `{folder}`",)),
    Case("GGUF: a missing file", nothing, lambda f: Gguf(path=str(f / "x.gguf")).config(), ("found 0",)),
    Case(
        "GGUF: two files",
        lambda f: [(f / n).touch() for n in ("a.gguf", "b.gguf")],
        lambda f: Gguf(path=str(f)).load(),
        ("found 2",),
    ),
    Case("GGUF: a package without one", nothing, lambda _: Gguf(package="json").config(), ("found 0",)),
    *(
        Case(f"GGUF: a package {n!r}", nothing, lambda _, n=n: Gguf(package=n).config(), ("not installed",))
        for n in ("", ".x", "nope.x")
    ),
    Case(
        "GGUF: a cache that is a file",
        lambda f: (f / "x.gguf").write_bytes(HEADER),
        lambda f: Gguf(path=str(f / "x.gguf"), cache=str(f / "x.gguf")).load(),
        ("`Gguf.cache`",),
    ),
    Case("GGUF: neither path nor package", nothing, lambda _: Gguf(), ("either",)),
]


def made(**dimensions):
    return lambda _: tiny_source(**dimensions).load()


RANDOM = [
    Case(f"dimensions: {given}", nothing, made(**given), ("`RandomWeights.dimensions`",))
    for given in (
        {"hidden_size": -16},
        {"hidden_size": 0},
        {"hidden_size": "x"},
        {"hidden_size": None},
        {"hidden_size": 15},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"hidden_act": "nope"},
        {"num_hidden_layers": "x"},
        {"hiden_size": 8},
        {"to_dict": 3},
        {"initializer_range": -1.0},
        {"rope_scaling": {"rope_type": "nope"}},
    )
]
RANDOM += [
    Case("an unknown architecture", nothing, lambda _: RandomWeights("lama").load(), ("`RandomWeights.model_type`",)),
    Case(
        "an architecture that is no language model", nothing, lambda _: RandomWeights("vit").load(), ("RandomWeights",)
    ),
    *(
        Case(
            f"layers that go: {layers}",
            nothing,
            lambda _, n=layers: Pruned(tiny_source(), drop_layers=n).load(),
            ("`Pruned`",),
        )
        for layers in ((2,), (-1,), (0, 1), (10**30,))
    ),
    Case("no layers that stay", nothing, lambda _: Pruned(tiny_source(), keep_layers=()).load(), ("`Pruned`",)),
]
SOURCE_CASES = [*PLACES, *GGUFS, *RANDOM]


@each(SOURCE_CASES)
def test_bad_sources_are_named(case, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept" / "cache").mkdir(parents=True)
    refuse(case, tmp_path)
