"""An exact resume beside what others change: callbacks that average weights, and settings of the trainer."""

import pytest
import torch

from veto_pl import DistillationModule
from veto_pl.callbacks import SampleTable

from .conftest import assert_equal_runs, curves, state
from .faults import StopError, fault, fit, raising

FLAT = ("--model.lr_schedule=Constant", "--model.lr_schedule.value=1")


def averaging(kind, **settings):
    return f"--trainer.callbacks={[{'class_path': f'lightning.pytorch.callbacks.{kind}', 'init_args': settings}]!r}"


EMA = averaging("EMAWeightAveraging", decay=0.5)
TWO_ROWS = ("--trainer.overfit_batches=4", "--trainer.val_check_interval=2")
RELOADING = ("--trainer.reload_dataloaders_every_n_epochs=1",)
LIMITED = ("--trainer.limit_train_batches=3", "--trainer.val_check_interval=3")


def assert_equal_averages(run, reference):
    for key in ("current_model_state", "averaging_state"):
        ours, theirs = state(run)[key], state(reference)[key]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), key


def test_a_longer_run_goes_on_with_the_weights_that_are_trained_not_with_their_average(config_file, tmp_path):
    """The save at the end of the first run comes from no interval, so it is the last thing that this run does."""
    options = (*FLAT, EMA, "--checkpoint.every_n_train_steps=3")
    fit(config_file, tmp_path / "once", *options)
    fit(config_file, tmp_path / "twice", *options, "--trainer.max_steps=5")
    ended = state(tmp_path / "twice")
    assert ended["global_step"] == 5
    assert any(not torch.equal(ended["current_model_state"][k], v) for k, v in ended["state_dict"].items())
    with pytest.warns(UserWarning, match=r"trainer\.max_steps: 5 -> 8"):
        fit(config_file, tmp_path / "twice", *options)
    assert_equal_runs(tmp_path / "twice", tmp_path / "once")
    assert_equal_averages(tmp_path / "twice", tmp_path / "once")


@pytest.mark.parametrize(
    ("owner", "where", "count"),
    [(DistillationModule, "training_step", 7), (SampleTable, "on_validation_batch_end", 5),
     (SampleTable, "on_validation_end", 3)],
)  # fmt: skip
def test_a_stop_anywhere_keeps_weights_and_average_apart(owner, where, count, config_file, tmp_path):
    """Inside a validation, the average stands in the model, and no interval has saved what stood there before."""
    options = (EMA, "--checkpoint.every_n_train_steps=3")
    fit(config_file, tmp_path / "once", *options)
    with fault(owner, where, count, raising), pytest.raises(StopError):
        fit(config_file, tmp_path / "twice", *options)
    fit(config_file, tmp_path / "twice", *options)
    assert_equal_runs(tmp_path / "twice", tmp_path / "once")
    assert_equal_averages(tmp_path / "twice", tmp_path / "once")


@pytest.mark.parametrize(
    ("options", "count"),
    [(TWO_ROWS, 6), (TWO_ROWS, 3), (RELOADING, 8), (LIMITED, 5)],
    ids=["overfit, second epoch", "overfit, first epoch", "reload", "limit"],
)
def test_a_stop_changes_nothing(options, count, config_file, tmp_path):
    fit(config_file, tmp_path / "once", *options)
    with fault(DistillationModule, "training_step", count, raising), pytest.raises(StopError):
        fit(config_file, tmp_path / "twice", *options)
    fit(config_file, tmp_path / "twice", *options)
    assert_equal_runs(tmp_path / "twice", tmp_path / "once")


def test_an_average_that_would_be_of_nothing_is_refused(config_file, tmp_path):
    """Lightning's older class copies the model before the student is loaded."""
    swa = averaging("StochasticWeightAveraging", swa_lrs=0.005)
    with pytest.raises(SystemExit, match=r"averages nothing\. Use `EMAWeightAveraging`"):
        fit(config_file, tmp_path, swa, "--trainer.max_epochs=2")


def test_overfitting_sees_the_same_rows_in_every_epoch(config_file, tmp_path):
    seen = []
    original = DistillationModule.training_step

    def watching(self, batch, batch_idx):
        seen.append(batch.numbers.tolist())
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DistillationModule, "training_step", watching)
        fit(config_file, tmp_path, *TWO_ROWS, "--trainer.max_steps=4", "--model.objective=SFT")
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]] * 2
    assert len(curves(tmp_path)) > 4
