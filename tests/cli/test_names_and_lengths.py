"""What is known at the start is compared at the start: monitors, lengths, switches, formats."""

import json
import sys
from types import SimpleNamespace

import lightning as L
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI

from veto_pl import checks
from veto_pl.callbacks import Checkpoints
from veto_pl.cli.build import VetoCLI
from veto_pl.cli.refusals import explain_refusal
from veto_pl.commands.main import find_classes_here, main
from veto_pl.data.epoch import check_epoch
from veto_pl.exceptions import ConfigurationError
from veto_pl.plugins import load_plugins
from veto_pl.storage.config_files import load

from .conftest import changed

CALLBACKS = "lightning.pytorch.callbacks."
QUIET = {"export.folder": None, "validate_first": False, "trainer.enable_model_summary": False}


@pytest.fixture
def built(config, write):
    load_plugins()
    cli_ = VetoCLI(["--config", write(config)], run=False)
    return cli_.model, cli_.datamodule


@pytest.fixture
def fitted(config, write):
    """Runs a fit of three steps, and returns the sentence that ends it, or None."""

    def run(changes):
        try:
            main(["fit", "--config", write(changed(config, {**QUIET, **changes}))])
        except SystemExit as ended:
            return str(ended.code)
        return None

    return run


class _Logs(L.Callback):
    """Of somebody else, who may log anything."""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("val_loss", "train/loss"),
        ("val/accuracy", "validation/accuracy"),
        ("val_accuracy", "validation/accuracy"),
        ("validation/acuracy", "validation/accuracy"),
        ("accuracy", "validation/accuracy"),
        ("mean_reward", "validation/mean_reward"),
    ],
)
def test_a_misspelt_monitor_is_named_with_what_is_meant(name, meant, built):
    stopping = {"trainer.callbacks.0.init_args": EarlyStopping(monitor=name)}
    with pytest.raises(ConfigurationError, match=rf"callbacks.0.init_args.monitor`: given `{name}`.*mean `{meant}`"):
        checks.check(*built, {}, callbacks=stopping)
    with pytest.warns(UserWarning, match=f"given `{name}`"):
        checks.check(*built, {}, callbacks={**stopping, "trainer.callbacks.1.init_args": _Logs()})


def test_monitors_of_what_is_measured_are_accepted(built):
    for name in (*(f"validation/{metric}" for metric in built[0].validation_metrics), "train/kl", "lr-AdamW"):
        checks.check(*built, {}, callbacks={"checkpoint": EarlyStopping(monitor=name)})
        if name.startswith("validation/"):
            with pytest.raises(ConfigurationError, match=r"`trainer.limit_val_batches`: given 0"):
                checks.check(*built, {"limit_val_batches": 0}, callbacks={"checkpoint": EarlyStopping(monitor=name)})


def test_a_monitor_is_compared_when_the_data_are_known(fitted):
    message = fitted({"checkpoint.monitor": "validation/accuracy", "data.task.init_args.validation": None})
    assert "`Checkpoints.monitor`: given `validation/accuracy`, without rows to validate on" in message


def test_a_monitor_of_training_is_compared_after_the_first_step(fitted):
    message = fitted({"checkpoint.monitor": "train/los"})
    assert "`Checkpoints.monitor`: given `train/los`" in message
    assert "Did you mean `train/loss`" in message
    assert fitted({"checkpoint.monitor": "train/loss"}) is None


def trainer(limit, interval, epochs=1, validation=1.0):
    return SimpleNamespace(
        limit_train_batches=limit,
        val_check_interval=interval,
        check_val_every_n_epoch=epochs,
        limit_val_batches=validation,
    )


@given(st.integers(1, 50), st.integers(1, 60) | st.floats(0.001, 1.0), st.integers(1, 60) | st.just(1.0))
def test_an_interval_within_the_epoch_is_accepted_and_one_beyond_it_is_not(batches, limit, interval):
    """As Lightning counts, which raises a bare error for the others."""
    used = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if used and (isinstance(interval, float) or interval <= used):
        check_epoch(trainer(limit, interval), batches)
        return
    setting = "val_check_interval" if used else "limit_train_batches"
    with pytest.raises(ConfigurationError, match=f"`trainer.{setting}`: given .* batches"):
        check_epoch(trainer(limit, interval), batches)
    if used:
        check_epoch(trainer(limit, interval, epochs=None), batches)
        check_epoch(trainer(limit, interval, validation=0), batches)


def test_an_interval_beyond_the_epoch_ends_the_command_before_the_first_step(fitted, tmp_path):
    message = fitted({"trainer.val_check_interval": 100, "trainer.check_val_every_n_epoch": 1})
    assert message.startswith("veto-pl: `trainer.val_check_interval`: given 100, expected at most the 3 batches")
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def callbacks(config, write, monkeypatch):
    """The callbacks of a trainer that a configuration makes."""
    load_plugins()

    def of(changes):
        monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda *_: None)
        return VetoCLI(["fit", "--config", write(changed(config, changes))]).trainer.callbacks

    return of


def test_switches_of_the_trainer_leave_callbacks_out(callbacks):
    bars = [c for c in callbacks({"trainer.enable_progress_bar": False}) if isinstance(c, ProgressBar)]
    assert bars == []
    tqdm = {"trainer.callbacks": [{"class_path": f"{CALLBACKS}TQDMProgressBar"}]}
    assert [type(c) for c in callbacks(tqdm) if isinstance(c, ProgressBar)] == [TQDMProgressBar]
    assert not [c for c in callbacks({"trainer.enable_checkpointing": False}) if isinstance(c, Checkpoints)]
    assert [c for c in callbacks({}) if isinstance(c, Checkpoints)]


def test_a_default_of_an_enumeration_is_written_as_its_text(callbacks):
    timer = {"trainer.callbacks": [{"class_path": f"{CALLBACKS}Timer", "init_args": {"duration": "00:01:00:00"}}]}
    assert any(type(c).__name__ == "Timer" for c in callbacks(timer))


REFUSED = {
    "a number of Lightning's": ("ModelCheckpoint", {"save_top_k": -5}, "Invalid value for save_top_k=-5"),
    "a rate": ("StochasticWeightAveraging", {"swa_lrs": -1}, "should a positive float"),
    "epochs": ("GradientAccumulationScheduler", {"scheduling": {-1: 0}}, r"Got \[-1\]"),
    "a time": ("Timer", {"duration": "x"}, "not a valid duration"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_class_says_comes_with_the_path(case, callbacks):
    name, arguments, says = REFUSED[case]
    with pytest.raises(ConfigurationError, match=rf"^`trainer.callbacks.0.init_args`: `{name}` refuses .*{says}"):
        callbacks({"trainer.callbacks": [{"class_path": CALLBACKS + name, "init_args": arguments}]})


@pytest.mark.parametrize("alphabet", ["", "aa"])
def test_the_sentence_of_a_class_of_ours_comes_alone(alphabet, callbacks):
    with pytest.raises(ConfigurationError, match=r"^`model.tokenizer.init_args.alphabet`: `CharacterTokenizer.alph"):
        callbacks({"model.tokenizer.init_args.alphabet": alphabet})


class _Broken(L.Callback):
    """Has a fault of its own, outside of its construction."""

    def state_dict(self):
        raise ValueError("a fault")


def test_a_fault_is_no_refusal():
    """Its traceback is wanted."""
    with pytest.raises(ValueError, match="a fault") as caught:
        _Broken().state_dict()
    assert explain_refusal(caught.value, {}, {}) is None


def test_a_folder_without_a_run_is_no_report(tmp_path):
    command = ["report", str(tmp_path), "--out", str(tmp_path / "page.html")]
    with pytest.raises(SystemExit, match=r"with `metrics.csv` or `samples.jsonl`, got neither"):
        main(command)
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "metrics.csv").write_text("step\n")
    main(command)


def test_classes_of_the_current_folder_are_found_last(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["/somewhere"])
    monkeypatch.chdir(tmp_path)
    find_classes_here()
    find_classes_here()
    assert sys.path == ["/somewhere", str(tmp_path)]


def test_a_number_alone_in_a_template_is_refused_on_the_command_line(config, write):
    options = ["--data.template", "PlainTemplate", "--data.template.format", "{0}"]
    with pytest.raises(SystemExit, match=r"`data.template.init_args.format`: .*got '\{0\}'"):
        main(["fit", "--config", write(config), *options])


def test_a_rate_that_is_no_number_is_named_by_its_path(config, write):
    for value, part in (("x", ".*x"), (float("inf"), "given inf, expected a finite number")):
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": value}}
        with pytest.raises(SystemExit, match=f"`model.optimizer.init_args.lr`: {part}"):
            main(["fit", "--config", write(changed(config, {"model.optimizer": optimizer}))])


def test_arguments_of_a_class_may_have_numbers_as_keys():
    assert load("callbacks: {init_args: {scheduling: {0: 4}}}")["callbacks"]["init_args"] == {"scheduling": {0: 4}}
    assert json.dumps(load("a: {b: c}")) == '{"a": {"b": "c"}}'
