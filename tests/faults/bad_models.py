"""A good model in a folder, and the ways in which it is spoiled: each function returns one that prepares a folder."""

import json
import os
import pickle
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load, save

from veto_pl.models import CharacterTokenizer, Pretrained
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.testing.tiny import ALPHABET, tiny_source

from .bad_inputs import Bomb, hostile_module

INDEX = "model.safetensors.index.json"


@cache
def files() -> dict[str, bytes]:
    """The files of a good model and its tokenizer, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_source().load().save_pretrained(folder)
        CharacterTokenizer(ALPHABET).load().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def good(folder):
    for name, data in files().items():
        (folder / name).write_bytes(data)
    return folder


def read(folder):
    return load_student(str(folder))


def load_student(path):
    source = Pretrained(path)
    return load_models(source, None, load_tokenizer(source)).student


def nothing(folder):
    """Nothing has to be prepared."""


def with_file(name, data):
    return lambda folder: (good(folder) / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def config(**changes):
    def prepare(folder):
        path = good(folder) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return prepare


def weights(change):
    def prepare(folder):
        path = good(folder) / "model.safetensors"
        tensors = load(path.read_bytes())
        change(tensors)
        path.write_bytes(save(tensors, {"format": "pt"}))

    return prepare


def stored(change):
    """The bytes of the file changed."""

    def prepare(folder):
        path = good(folder) / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return prepare


def without(name):
    return lambda folder: (good(folder) / name).unlink()


def pickled(name, whole=True):
    """A pickle that creates the marker when it is read."""

    def prepare(folder):
        if whole:
            (good(folder) / "model.safetensors").unlink()
        payload = {"model.norm.weight": Bomb(folder)}
        if name.endswith(".bin"):
            torch.save(payload, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(payload))

    return prepare


def index(file=None, text=None):
    """An index that names `file` for every weight."""

    def prepare(folder):
        tensors = load((good(folder) / "model.safetensors").read_bytes())
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder.parent / "outside.safetensors").write_bytes(files()["model.safetensors"])
        content = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, file)}) if text is None else text
        (folder / INDEX).write_text(content)

    return prepare


def pipe(name):
    def prepare(folder):
        (good(folder) / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return prepare


def hostile(**changes):
    def prepare(folder):
        config(**changes)(folder)
        (folder / "evil.py").write_text(hostile_module(folder))

    return prepare
