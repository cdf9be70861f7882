"""Folders that hold no model: named, not executed, and never half a model."""

import pickle
import struct

import pytest
import torch

from veto_pl.exceptions import DataError
from veto_pl.models import Gguf, Pretrained

from .bad_inputs import JUNK, Bomb, Case, each, refuse
from .bad_models import INDEX, config, good, hostile, index, pickled, pipe, read, stored, weights, with_file, without

HERE = ("`{folder}`",)
FIELDS = {
    "model_type": ["nope", None, "vit", "t5"],
    "hidden_size": ["x", 15, -16],
    "num_attention_heads": [0],
    "num_key_value_heads": [7],
    "vocab_size": [-5, None, 10],
    "intermediate_size": [31],
    "num_hidden_layers": [3, None],
    "hidden_act": ["nope"],
    "dtype": ["nope"],
    "rms_norm_eps": ["x"],
    "tie_word_embeddings": ["x"],
    "eos_token_id": ["a", {}],
    "attention_dropout": [7, "x"],
    "rope_scaling": [{"rope_type": "nope"}, 5],
}
CONFIGS = [
    Case(
        f"config: {name} {value!r}",
        config(**{name: value}),
        read,
        HERE if name != "vocab_size" or value != 10 else ("10",),
    )
    for name, values in FIELDS.items()
    for value in values
]
CONFIGS += [Case(f"config.json: {name}", with_file("config.json", data), read, HERE) for name, data in JUNK.items()]
CONFIGS += [
    Case("no config.json", without("config.json"), read, HERE),
    Case("a config.json that is a pipe", pipe("config.json"), read, ("config.json` is a pipe",)),
    Case(
        "code for a configuration",
        hostile(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
        read,
        ("custom code",),
    ),
    Case("generation_config.json: a list", with_file("generation_config.json", "[]"), read, HERE),
    Case(
        "an end that is no id",
        with_file("generation_config.json", '{"eos_token_id": "b"}'),
        read,
        ("`eos_token_id` 'b'",),
    ),
    Case(
        "an end below 0", with_file("generation_config.json", '{"eos_token_id": [1, -3]}'), read, ("`eos_token_id` -3",)
    ),
]


def cut(data):
    return data[: len(data) // 2]


NAME = "model.layers.0.mlp.up_proj.weight"
NOT_READ = ("No model could be read from `{folder}`",)
WEIGHTS = [
    Case(f"safetensors: {name}", stored(change), read, NOT_READ)
    for name, change in {
        "nothing": lambda data: b"",
        "seven bytes": lambda data: data[:7],
        "cut": cut,
        "cut by a byte": lambda data: data[:-1],
        "a byte more": lambda data: data + b"x",
        "a header without an end": lambda data: struct.pack("<Q", 2**60) + data[8:],
        "a header of nothing": lambda data: struct.pack("<Q", 0) + data[8:],
        "a short header": lambda data: struct.pack("<Q", 5) + data[8:],
        "a header that is no JSON": lambda data: data[:8] + b"x" * 50 + data[58:],
        "a pointer of Git LFS": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "a page": lambda data: b"<html>404</html>",
        "zeros": lambda data: bytes(len(data)),
    }.items()
]
WEIGHTS += [
    Case("a weight that lacks", weights(lambda t: t.pop(NAME)), read, (f"not there: `{NAME}`", *HERE)),
    Case("most weights lack", weights(lambda t: [t.pop(k) for k in list(t)[2:]]), read, ("not there", "more")),
    Case(
        "weights of another model",
        weights(lambda t: [t.update({f"x.{k}": t.pop(k)}) for k in list(t)]),
        read,
        ("not there",),
    ),
    *(
        Case(
            f"another shape: {shape}",
            weights(lambda t, s=shape: t.update({NAME: torch.zeros(s)})),
            read,
            ("shape", NAME),
        )
        for shape in [(3,), (16, 32), (32, 17), (0, 16)]
    ),
    *(
        Case(
            f"{value} in {name}",
            weights(lambda t, n=name, v=value: t[n].view(-1)[3:4].fill_(v)),
            read,
            ("not finite", name),
        )
        for value in (float("nan"), float("inf"), float("-inf"))
        for name in (NAME, "model.norm.weight", "model.embed_tokens.weight")
    ),
    Case("no weights", without("model.safetensors"), read, HERE),
    Case("weights that are a pipe", pipe("model.safetensors"), read, ("model.safetensors` is a pipe",)),
]
PICKLES = [
    *(
        Case(f"only a pickle: {name}", pickled(name), read, ("pickled weights only", name))
        for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "epoch.ckpt", "weights.pkl")
    ),
    Case("a pickle called safetensors", pickled("model.safetensors"), read, NOT_READ),
    Case(
        "an archive of torch called safetensors",
        lambda f: torch.save({"a": Bomb(f)}, good(f) / "model.safetensors"),
        read,
        NOT_READ,
    ),
    Case(
        "a pickle called GGUF",
        lambda f: (f / "x.gguf").write_bytes(pickle.dumps(Bomb(f))),
        lambda f: Gguf(path=str(f / "x.gguf"), cache=str(f)).load(),
        ("x.gguf",),
    ),
    Case("a pickle called tokenizer.json", pickled("tokenizer.json", whole=False), read, ("No tokenizer",)),
    Case("a pickle called config.json", pickled("config.json", whole=False), read, HERE),
    Case(
        "a bomb of pickles",
        lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x04" + b"]\x94" * 10**6 + b"."),
        lambda f: Pretrained(str(f)).load(),
        HERE,
    ),
]
INDICES = [
    *(
        Case(
            f"an index that names {file!r}",
            index(file),
            read,
            (INDEX, str(file), "this folder" if bad else "not exist"),
        )
        for file, bad in (
            ("b.safetensors", False),
            ("../outside.safetensors", True),
            ("/etc/passwd", True),
            ("x.bin", True),
            (3, True),
            ("", True),
            ("sub/a.safetensors", True),
            ("..", True),
            (None, True),
        )
    ),
    *(
        Case(f"an index that is {text[:20]!r}", index(text=text), read, (INDEX, "is no index"))
        for text in ("{", "{}", "[]", "", "null", '{"weight_map": ["a"]}', '{"weight_map": 3}', "[" * 10**5)
    ),
]
MODEL_CASES = [*CONFIGS, *WEIGHTS, *PICKLES, *INDICES]


@each(MODEL_CASES)
def test_bad_models_are_named(case, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse(case, tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "training_args.bin"])
def test_a_pickle_beside_safetensors_is_not_read(name, tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    good(folder)
    torch.save({"a": Bomb(folder)}, folder / name)
    read(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"input"}


def test_code_beside_a_known_architecture_is_not_run(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    hostile(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})(folder)
    read(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"input"}


def test_weights_that_nobody_uses_are_warned_of(tmp_path):
    weights(lambda tensors: tensors.update({"model.layers.7.x": torch.zeros(2)}))(tmp_path)
    with pytest.warns(UserWarning, match=r"does not use: `model.layers.7.x`"):
        read(tmp_path)


def test_running_out_of_memory_is_not_blamed_on_the_model(tmp_path, monkeypatch):
    good(tmp_path)
    for error in (MemoryError, torch.OutOfMemoryError):

        def load(*_, error=error, **__):
            raise error("no memory")

        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
        with pytest.raises(error, match="no memory"):
            Pretrained(str(tmp_path)).load()


def test_the_files_of_a_sharded_model_are_checked_alike(tmp_path):
    """`stored` is what a sharded student is read by."""
    index("../outside.safetensors")(tmp_path / "input" if (tmp_path / "input").mkdir() is None else tmp_path)
    with pytest.raises(DataError, match=r"is no safetensors file of this folder"):
        Pretrained(str(tmp_path / "input")).stored()
