"""The debug runs: one for each file of configs/debug, and for the first example of each other objective."""

import csv
import json
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml

from veto_pl.commands.main import main
from veto_pl.module import DistillationModule
from veto_pl.testing.examples import arguments_of, first_examples

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GOLDEN = Path(__file__).parent / "configs" / "golden"
SHARED = ("base", "reference")
REWARD = "veto_pl.testing.one_liners.share_of_letters"
FILES = sorted(p.stem for p in (CONFIGS / "debug").glob("*.yaml") if p.stem not in SHARED)
_SHOWN = {
    yaml.safe_load((CONFIGS / f"debug/{name}.yaml").read_text())["model"]["objective"]["class_path"] for name in FILES
}
EXAMPLES = {name: example for name, example in first_examples(longest=8).items() if name not in _SHOWN}
DEBUG = [*FILES, *EXAMPLES]


def arguments(name):
    """What describes a debug run on the command line."""
    example = EXAMPLES.get(name)
    shared = ("base", name) if example is None else ("base", *(["reference"] if example.needs_reference else []))
    files = [f"--config={CONFIGS / 'debug' / f'{file}.yaml'}" for file in shared]
    # No answer of an untrained student is right, so rewards tell how near they are.
    told = [f"--data.reward={REWARD}"] if example is not None and example.needs_rewards else []
    return [*files, *told, *(arguments_of(example) if example else [])]


def debug_run(name, folder, *options):
    """What each step of a debug run logged, without times."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    main(["fit", *arguments(name), f"--run_dir={folder}", *options])
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [
        {key: cell for key, cell in row.items() if not any(part in key for part in ("second", "time"))} for row in rows
    ]


def losses(log):
    return [float(row["train/loss"]) for row in log]


def golden_losses(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


class StoppedError(Exception):
    """What stops a run."""


@contextmanager
def stopped_at(calls, method="training_step"):
    """Lets the module raise in the n-th call of a method, and expects it."""
    act, seen = getattr(DistillationModule, method), []

    def stopping(*arguments):
        seen.append(arguments)
        if len(seen) == calls:
            raise StoppedError
        return act(*arguments)

    with pytest.MonkeyPatch.context() as patch, suppress(StoppedError):
        patch.setattr(DistillationModule, method, stopping)
        yield
    assert len(seen) == calls
