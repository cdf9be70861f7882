"""The files of docs/served_student.md, and its runs with models so small that they take seconds."""

import os
import re
import shlex
from string import ascii_letters
from unittest.mock import patch

import yaml

from tests.processes import ROOT, python

PAGE = (ROOT / "docs" / "served_student.md").read_text()
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FILES = {title: code for _, title, code in FENCE.findall(PAGE) if title}
LINES = [
    line for kind, _, code in FENCE.findall(PAGE) if kind == "bash" for line in code.replace("\\\n", " ").splitlines()
]
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] | upper }}>{{ message.content }}{{ eos_token if message.role == "
    "'assistant' else '>' }}{% endfor %}{% if add_generation_prompt %}A>{% endif %}"
)
ALPHABET = ascii_letters + " .?>"
SIZES = {
    "vocab_size": len(ALPHABET) + 3, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.4,
}  # fmt: skip


def random_model(seed):
    init = {"model_type": "llama", "seed": seed, "dimensions": SIZES}
    return {"class_path": "RandomWeights", "init_args": init}


TINY = {
    "model": {
        "tokenizer": {"class_path": "CharacterTokenizer", "init_args": {"alphabet": ALPHABET}},
        "student": {
            "class_path": "Lora",
            "init_args": {
                "source": {"class_path": "Pruned", "init_args": {"source": random_model(0), "drop_layers": [1]}},
            },
        },
    },
    "data": {
        "template": {"class_path": "ChatTemplate", "init_args": {"template": TEMPLATE}},
        "max_prompt_tokens": 180,
        "max_completion_tokens": 24,
    },
}  # fmt: skip
"""A layer of configuration: other models and a tokenizer of letters; a conversation has up to 150 of them."""


def command(start):
    """The page's one command that begins so, as a list."""
    (line,) = [line for line in LINES if line.startswith(start)]
    return shlex.split(line.partition("#")[0])


def write(folder):
    """The page's files, its rows, and the recipes that its commands name."""
    for title, code in FILES.items():
        (folder / title).parent.mkdir(exist_ok=True)
        (folder / title).write_text(code)
    (folder / "configs").symlink_to(ROOT / "configs")
    done = python("-c", FILES["rows.py"], cwd=folder)
    assert done.returncode == 0, done.stderr


def fit(folder, run_dir, *options, layer=TINY, timeout=300):
    """The page's `veto-pl fit` into `run_dir`, with one more layer of configuration if any; what it has printed."""
    (line,) = [line for line in LINES if line.startswith("veto-pl fit") and line.split()[-1] == run_dir]
    arguments = shlex.split(line)[1:]
    if layer is not None:
        (folder / "layer.yaml").write_text(yaml.safe_dump(layer))
        arguments += ["--config", "layer.yaml"]
    arguments += options
    with patch.dict(os.environ, {"WANDB_SILENT": "true"}):
        done = python("-m", "veto_pl", *arguments, cwd=folder, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def tiny_run(folder):
    """The page's first run in miniature, which ends early: what it has printed."""
    write(folder)
    teacher = {"model": TINY["model"] | {"teacher": random_model(1)}, "data": TINY["data"]}
    short = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--data.train_limit=32"]
    return fit(folder, "runs/served", *short, layer=teacher)
