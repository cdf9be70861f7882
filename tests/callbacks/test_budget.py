"""Runs that are counted in tokens or seconds."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from veto_pl.callbacks import Budget
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.module import DistillationModule

ROOT = Path(__file__).parents[2]
CONFIGS = [f"--config={ROOT}/configs/debug/{name}.yaml" for name in ("base", "veto")]
LINE = "--model.lr_schedule={class_path: Linear, init_args: {start: 1.0, end: 0.0}}"


def fit(folder, *options):
    main(["fit", *CONFIGS, LINE, "--trainer.max_steps=500", "--trainer.val_check_interval=1000", f"--run_dir={folder}",
          "--trainer.enable_progress_bar=true", *options])  # fmt: skip
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["train/loss"]], [row for row in rows if row["validation/accuracy"]]


def weights(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_tokens_end_a_run_and_schedules_run_over_them(tmp_path):
    steps, validations = fit(tmp_path, "--budget.tokens=900")
    spent = [float(row["train/tokens"]) for row in steps]
    assert sum(spent[:-1]) < 900 <= sum(spent)
    betas = [float(row["train/beta"]) for row in steps]
    assert betas[0] == pytest.approx(0.8)
    assert betas == sorted(betas, reverse=True)
    # The fraction of the run that is done is the fraction of the budget that is spent.
    done = [sum(spent[: i - 1]) / 900 * i / (i - 1) for i in range(2, len(steps))]
    assert betas[2:] == pytest.approx([0.8 * (1 - share) for share in done], abs=0.05)
    assert float(steps[-1]["train/learning_rate"]) < 0.2 * float(steps[0]["train/learning_rate"])
    assert int(validations[-1]["step"]) >= int(steps[-1]["step"])  # it ends with a validation


class BreakDownError(RuntimeError):
    """In the middle of a run."""


def test_a_stopped_run_goes_on_with_what_is_left(tmp_path, monkeypatch):
    whole, _ = fit(tmp_path / "whole", "--budget.tokens=600")
    train = DistillationModule.training_step

    def breaks_down(module, *args):
        if module.global_step == 4:
            raise BreakDownError
        return train(module, *args)

    monkeypatch.setattr(DistillationModule, "training_step", breaks_down)
    with pytest.raises(BreakDownError):
        fit(tmp_path / "parts", "--budget.tokens=600")
    monkeypatch.undo()
    parts, _ = fit(tmp_path / "parts", "--budget.tokens=600", "--ckpt_path=last")
    assert [row["train/tokens"] for row in parts] == [row["train/tokens"] for row in whole]
    assert [row["train/beta"] for row in parts] == [row["train/beta"] for row in whole]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_has_spent_its_budget_does_no_further_step(tmp_path):
    whole, _ = fit(tmp_path, "--budget.tokens=300")
    before = weights(tmp_path)
    again, _ = fit(tmp_path, "--budget.tokens=300", "--ckpt_path=last")
    assert [row["step"] for row in again] == [row["step"] for row in whole]
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())


@pytest.mark.parametrize(
    "budget",
    [
        ["--budget.tokens=200"],
        pytest.param(["--budget.steps=4"], marks=pytest.mark.slow),
        pytest.param(["--budget.steps=4", "--trainer.max_steps=4"], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_in_its_last_validation_makes_up_for_it(tmp_path, monkeypatch, budget):
    options = [*budget, "--trainer.val_check_interval=2"]
    whole = [[row["step"] for row in rows] for rows in fit(tmp_path / "whole", *options)]
    validate = DistillationModule.validation_step

    def breaks_down(module, *args):
        if module.global_step == 4:
            raise BreakDownError
        return validate(module, *args)

    monkeypatch.setattr(DistillationModule, "validation_step", breaks_down)
    with pytest.raises(BreakDownError):
        fit(tmp_path / "parts", *options)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    steps, _ = fit(tmp_path / "other", *budget, "--ckpt_path=last")
    assert [row["step"] for row in steps] == whole[0], "no further step where no validation is due any more"
    assert [[row["step"] for row in rows] for rows in fit(tmp_path / "parts", *options, "--ckpt_path=last")] == whole


def test_steps_end_a_run_with_a_validation(tmp_path):
    """`fit` validates every 1000 steps, so `max_steps` alone ends without one."""
    steps, validations = fit(tmp_path, "--budget.steps=5")
    assert len(steps) == 5
    assert int(validations[-1]["step"]) >= int(steps[-1]["step"])
    assert float(steps[-1]["train/learning_rate"]) == pytest.approx(0.01 * (1 - 4 / 5))


def test_seconds_end_a_run(tmp_path):
    steps, _ = fit(tmp_path, "--budget.seconds=0.4")
    phases = [name for name in steps[0] if name.startswith("train/seconds/") and not name.endswith("validation")]
    spent = [sum(float(row[name] or 0) for name in phases) for row in steps]
    assert sum(spent[:-1]) < 0.4 <= sum(spent)


def test_turns_end_a_run(tmp_path):
    steps, _ = fit(tmp_path, "--budget.turns=30")
    spent = [float(row["train/played_turns"]) for row in steps]
    assert set(spent) == {8.0}, "a completion without an environment is a turn"
    assert len(spent) == 4


def test_checkpoints_from_before_there_were_turns_go_on():
    budget = Budget(turns=10)
    budget.load_state_dict({"spent": {"tokens": 50.0, "seconds": 2.0}, "steps": 6})
    assert budget.state_dict()["spent"] == {"tokens": 50.0, "seconds": 2.0, "turns": 0.0}
    budget.load_state_dict({"spent": {"tokens": 50.0, "seconds": 2.0, "turns": 5.0}, "steps": 6})
    assert budget.horizon() == 12


def test_the_limit_that_comes_first_holds():
    budget = Budget(tokens=100, seconds=10.0)
    budget.load_state_dict({"spent": {"tokens": 50.0, "seconds": 2.0}, "steps": 6})
    assert budget.horizon() == 12
    budget.load_state_dict({"spent": {"tokens": 50.0, "seconds": 8.0}, "steps": 6})
    assert budget.horizon() == round(6 / 0.8)
    assert Budget().horizon() == Budget(tokens=5).horizon() == float("inf")
    copy = Budget(tokens=100, seconds=10.0)
    copy.load_state_dict(budget.state_dict())
    assert copy.horizon() == budget.horizon()


@pytest.mark.parametrize("given", [{"tokens": 0}, {"tokens": -1}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_budget_of_nothing_is_refused(given):
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        Budget(**given)
