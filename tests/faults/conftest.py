"""Runs that have everything an exact resume has to restore, small enough to be repeated many times."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

WORDS = ["abc", "bca", "cab", "aab", "bbc", "cca", "ab", "ba", "ac", "ca"]
NOT_COMPARED = ("seconds/", "tokens_per_second")


def model(seed):
    """GPT-2's dropout of 0.1 is on in the student."""
    sizes = {"vocab_size": 9, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    return {
        "class_path": "RandomWeights",
        "init_args": {"model_type": "gpt2", "dimensions": sizes | ends, "seed": seed},
    }


def configuration(folder: Path) -> dict:
    """Ten rows in five micro-batches, windows of two: three windows an epoch, the last of one micro-batch.

    The run ends inside its third epoch. A validation follows every fourth micro-batch, inside windows and between.
    """
    rows = [{"prompt": f"{word}>", "completion": word[::-1]} for word in WORDS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"train": str(folder / "rows.jsonl"), "validation": str(folder / "rows.jsonl"), "verifier": "ExactMatch"}
    sampling = {"max_new_tokens": 4}
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 8,
            "accumulate_grad_batches": 2,
            "check_val_every_n_epoch": None,
            "val_check_interval": 4,
            "enable_model_summary": False,
        },
        "data": {
            "task": {"class_path": "JsonLines", "init_args": task},
            "batch_size": 2,
            "validation_batch_size": 4,
            "max_prompt_tokens": 8,
            "max_completion_tokens": 8,
        },
        "model": {
            "objective": {"class_path": "GKD", "init_args": {"lmbda": 0.5, "sampling": sampling}},
            "student": model(0),
            "teacher": model(1),
            "tokenizer": {"class_path": "CharacterTokenizer", "init_args": {"alphabet": ">abc"}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "lr_schedule": {"class_path": "Linear", "init_args": {"start": 1.0, "end": 0.1}},
            "evaluation": {"max_new_tokens": 4, "temperature": 1.0},
        },
        "samples": {"show": False, "number": 3},
        "export": {"folder": None},
        "diagnostics": {"discarded_mass": 1.0},
        "checkpoint": {"every_n_train_steps": 2},
    }


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    """The configuration as a file; its run folder is given with each command."""
    folder = tmp_path_factory.mktemp("faults")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(folder)))
    return str(path)


def curves(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the times."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: cell for name, cell in row.items() if not any(part in name for part in NOT_COMPARED)} for row in rows
    ]


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal_runs(run: Path, reference: Path) -> None:
    """To the bit: every logged number and its order, the samples, weights, moments of Adam, the schedule."""
    assert curves(run) == curves(reference)
    assert (run / "samples.jsonl").read_text() == (reference / "samples.jsonl").read_text()
    ours, theirs = state(run), state(reference)
    assert ours["global_step"] == theirs["global_step"]
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    for ours_of, theirs_of in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        for index, moments in theirs_of["state"].items():
            assert all(torch.equal(ours_of["state"][index][name], value) for name, value in moments.items())
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    assert ours["veto_pl_progress"] == theirs["veto_pl_progress"]
