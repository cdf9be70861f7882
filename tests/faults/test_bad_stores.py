"""Stores of teacher scores that are damaged, or made up."""

import hashlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load, save

from veto_pl.commands.teacher_scores import Scorer, write_store
from veto_pl.data.collate import Collator
from veto_pl.rollouts import FromCache
from veto_pl.seams import Example, Step
from veto_pl.testing.tiny import tiny_models

from .bad_inputs import Bomb, Case, each, refuse

MANIFEST = "manifest.json"
SHARD = "shard-00000.safetensors"
ROWS = [Example(f"{word}>", word[::-1]) for word in ("abc", "a", "hgf", "pp", "bca", "mnop")]
STATE = {}


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    """Written once; each case spoils a copy."""
    folder, models = tmp_path_factory.mktemp("store"), tiny_models()
    collator = Collator(tokenizer=models.tokenizer)
    write_store(
        Scorer(models=models, collator=collator, k=5),
        collator.encode(ROWS),
        folder,
        rows_per_shard=4,
        say=lambda _: None,
    )
    STATE.update(models=models, collator=collator, files={path.name: path.read_bytes() for path in folder.iterdir()})


def good(folder):
    for name, data in STATE["files"].items():
        (folder / name).write_bytes(data)
    return folder


def read(folder):
    return FromCache(str(folder))(STATE["collator"](ROWS[:3]), STATE["models"], Step(0, 1))


def manifest(change):
    def prepare(folder):
        content = json.loads((good(folder) / MANIFEST).read_text())
        change(content)
        (folder / MANIFEST).write_text(json.dumps(content))

    return prepare


def signed(data):
    """A shard of these bytes, which the manifest names with their own hash."""

    def prepare(folder):
        written = data(folder)
        (folder / SHARD).write_bytes(written)
        content = json.loads((folder / MANIFEST).read_text())
        content["shards"][0]["sha256"] = hashlib.sha256(written).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(content))

    return prepare


def raw(data):
    return signed(lambda folder: good(folder) and data)


def tensors(change):
    def data(folder):
        content = load((good(folder) / SHARD).read_bytes())
        change(content)
        return save({name: tensor.contiguous() for name, tensor in content.items()})

    return signed(data)


def damaged(change):
    """Bytes changed behind the manifest's back."""

    def prepare(folder):
        path = good(folder) / SHARD
        path.write_bytes(change(path.read_bytes()))

    return prepare


NO_MANIFEST = ("`{folder}", "manifest.json")
JUNK = {
    "{": b"{",
    "[]": b"[]",
    "nothing": b"",
    "null": b"null",
    "3": b"3",
    "NaN": b"NaN",
    "noise": bytes(range(255, 0, -1)),
    "deep": b"[" * 10**5,
    "UTF-16": "{}".encode("utf-16"),
    "{}": b"{}",
}
IDENTITIES = {
    "k": ["x", 0, -1, 9, None, 1.5],
    "temperature": [0, -1.0, "x", None, float("nan"), float("inf")],
    "tokenizer": [3, None, "another"],
    "teacher": [3],
    "more": [1],
}
SHARDS = {
    "file": ["../../x.safetensors", "/etc/passwd", 3, "", ".", "a\0b.safetensors", "no.safetensors", "manifest.json"],
    "sha256": ["0" * 64, None, 3],
    "rows": ["x", None],
    "cost": [None, 3, {"tokens": "x"}, {"more": 1}],
    "more": [1],
}
MANIFESTS = [
    *(
        Case(f"a manifest: {name}", lambda f, d=data: (good(f) / MANIFEST).write_bytes(d), read, NO_MANIFEST)
        for name, data in JUNK.items()
    ),
    *(
        Case(
            f"identity: {name} {value!r}",
            manifest(lambda m, n=name, v=value: m["identity"].update({n: v})),
            read,
            ("{folder}",),
        )
        for name, values in IDENTITIES.items()
        for value in values
    ),
    *(
        Case(
            f"shard: {name} {value!r}",
            manifest(lambda m, n=name, v=value: m["shards"][0].update({n: v})),
            read,
            ("{folder}",),
        )
        for name, values in SHARDS.items()
        for value in values
    ),
    *(
        Case(f"manifest: {name} {value!r}", manifest(lambda m, n=name, v=value: m.update({n: v})), read, ("{folder}",))
        for name, values in {"format": [2, None, "1"], "shards": [3, None, [None]], "complete": [False, "no"]}.items()
        for value in values
    ),
    Case("no manifest", lambda f: (good(f) / MANIFEST).unlink(), read, NO_MANIFEST),
    Case(
        "a manifest that is a pipe",
        lambda f: ((good(f) / MANIFEST).unlink(), os.mkfifo(f / MANIFEST)),
        read,
        NO_MANIFEST,
    ),
    *(
        Case(f"a store at {p!r}", good, lambda f, p=p: FromCache(p.replace("X", str(f))), ("manifest.json",))
        for p in ("", "a\0b", "X/manifest.json", "/no")
    ),
]
NAMES = ("keys", "offsets", "ids", "logp")
CHANGES = {
    "lacks": lambda t, n: t.pop(n),
    "is empty": lambda t, n: t.update({n: t[n][:0]}),
    "is short": lambda t, n: t.update({n: t[n][:-1]}),
    "is flat": lambda t, n: t.update({n: t[n].flatten()[:4]}),
    "has another type": lambda t, n: t.update({n: t[n].double()}),
}
VALUES = {
    "scores without a tail": lambda t: t.update(logp=t["logp"][:, :-1]),
    "NaN": lambda t: t["logp"].fill_(float("nan")),
    "infinity": lambda t: t["logp"][:, 0].fill_(float("inf")),
    "probabilities above 1": lambda t: t["logp"].fill_(3.0),
    "probabilities that sum to 2": lambda t: t["logp"].add_(0.69),
    "ids below 0": lambda t: t["ids"].fill_(-5),
    "ids that nobody has": lambda t: t["ids"].copy_(torch.arange(5) + 1000),
    "ids twice": lambda t: t["ids"].fill_(1),
    "offsets beyond the end": lambda t: t["offsets"].mul_(7),
    "offsets that fall": lambda t: t["offsets"].copy_(t["offsets"].flip(0)),
    "offsets below 0": lambda t: t["offsets"].neg_(),
    "other keys": lambda t: t["keys"].fill_(1),
}
CONTENTS = [
    Case(f"{name} {how}", tensors(lambda t, n=name, c=change: c(t, n)), read, (SHARD, "cannot be read"))
    for name in NAMES
    for how, change in CHANGES.items()
]
CONTENTS += [Case(name, tensors(change), read, ("{folder}",)) for name, change in VALUES.items()]
CONTENTS += [
    Case(f"signed: {name}", raw(data), read, (SHARD, "cannot be read"))
    for name, data in {"nothing": b"", "a text": b"hello there", "zeros": bytes(100)}.items()
]
CONTENTS += [
    Case("signed: a pickle", signed(lambda f: good(f) and pickle.dumps(Bomb(f))), read, (SHARD, "cannot be read")),
    Case("a byte flipped", damaged(lambda d: d[:-1] + bytes([d[-1] ^ 1])), read, (SHARD, "is damaged")),
    Case("cut", damaged(lambda d: d[:-8]), read, (SHARD, "is damaged")),
    Case("longer", damaged(lambda d: d + b"x"), read, (SHARD, "is damaged")),
    Case("gone", lambda f: (good(f) / SHARD).unlink(), read, (SHARD, "no such file")),
]
STORE_CASES = [*MANIFESTS, *CONTENTS]


@each(STORE_CASES)
def test_bad_stores_are_named(case, tmp_path):
    refuse(case, tmp_path)


def test_the_good_store_is_read(tmp_path):
    assert read(good(tmp_path)).teacher_scores.logp.isfinite().all()
