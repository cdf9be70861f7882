"""A tokenizer of one id per character, and files of rows."""

import gzip
import json
import os
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PUBLISHED = "DATA"
"""The environment variable of the folder with GSM8K and DialogSum as JSON Lines, which no package index has."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 >=+?éß日本🎉"
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ mark }}{% endif %}"
)


@pytest.fixture
def make_tokenizer():
    def make(**special):
        special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"} | special
        vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *CHARACTERS])}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=core, **special)

    return make


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def write_rows(tmp_path):
    """Writes strings as they are and everything else as JSON; returns the path."""

    def write(name, *rows):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


@pytest.fixture
def published():
    """Where a published data set is on this machine, and its rows."""

    def find(name):
        assert PUBLISHED in os.environ, f"set {PUBLISHED} to a folder that has {name}"
        path = Path(os.environ[PUBLISHED]) / name
        return str(path), [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return find
