"""A tiny run that every command-line test starts from."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from tests.processes import python
from veto_pl.cli.build import VetoCLI
from veto_pl.plugins import load_plugins

WORDS = ["abc", "bca", "cab", "aab", "bbc", "cca", "ab", "ba", "ac", "ca"]
TINY_MODEL = {
    "class_path": "RandomWeights",
    "init_args": {
        "model_type": "llama",
        "dimensions": {
            "vocab_size": 9,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
    },
}


def tiny_config(folder: Path) -> dict:
    """Reverse a word of three letters, on the CPU, three steps."""
    rows = [{"prompt": f"{word}>", "completion": word[::-1]} for word in WORDS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "trainer": {"accelerator": "cpu", "max_steps": 3, "check_val_every_n_epoch": None, "val_check_interval": 3},
        "data": {
            "task": {
                "class_path": "JsonLines",
                "init_args": {
                    "train": str(folder / "train.jsonl"),
                    "validation": str(folder / "train.jsonl"),
                    "verifier": {"class_path": "ExactMatch"},
                },
            },
            "batch_size": 4,
            "max_prompt_tokens": 16,
            "max_completion_tokens": 16,
        },
        "model": {
            "objective": {"class_path": "SFT"},
            "student": TINY_MODEL,
            "tokenizer": {"class_path": "CharacterTokenizer", "init_args": {"alphabet": ">abc"}},
            "evaluation": {"max_new_tokens": 4},
        },
        "run_dir": str(folder / "run"),
        "samples": {"show": False},
    }


@pytest.fixture
def config(tmp_path):
    """The tiny configuration, as a dictionary to change."""
    return tiny_config(tmp_path)


@pytest.fixture
def write(tmp_path):
    """Writes a configuration and returns its path."""

    def to_file(content, name="config.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return to_file


@pytest.fixture
def parse():
    """What a command line means, after all classes have been chosen."""
    load_plugins()

    def parsed(*arguments):
        return VetoCLI(list(arguments), run=False).config

    return parsed


def veto_pl(*arguments, cwd=None, path=()):
    """Runs the command as a user does, in a process of its own."""
    return python("-m", "veto_pl", *arguments, cwd=cwd, path=path)


ABSENT = object()


def changed(config, changes):
    """A copy with values at dotted paths replaced, or taken away."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        at = config
        *way, last = path.split(".")
        for key in way:
            at = at.setdefault(key, {})
        if value is ABSENT:
            del at[last]
        else:
            at[last] = value
    return config
