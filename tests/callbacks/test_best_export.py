"""The best checkpoint is exported where that is wanted, and a run that stops early says so."""

import json
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from faults.conftest import config_file
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from veto_pl.callbacks import Checkpoints, Diagnostics
from veto_pl.commands.main import main
from veto_pl.module import DistillationModule

__all__ = ["config_file"]

WORST_LAST = ("--checkpoint.monitor=validation/forward_kl", "--checkpoint.mode=max", "--model.optimizer.lr=0.01")
"""The student comes nearer to the teacher, so what is farthest from it is the first checkpoint."""
KEPT = []
"""The student of the module after the run."""


@pytest.fixture(scope="module")
def run(config_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")

    def keep(self):
        KEPT.append({name: weight.detach().clone() for name, weight in self.student.model.named_parameters()})

    with patch.object(DistillationModule, "on_fit_end", keep):
        main(["fit", "--config", config_file, f"--run_dir={folder}", *WORST_LAST, "--export.folder=export",
              "--export.which=best", "--trainer.limit_val_batches=1"])  # fmt: skip
    return folder


def student(checkpoint):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("student.model."): weight for name, weight in state.items()}


def same(weights, others):
    return all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_the_export_has_the_weights_of_the_best_checkpoint_and_the_module_the_last_ones(run):
    (best,) = (run / "checkpoints").glob("epoch=*.ckpt")
    exported = dict(AutoModelForCausalLM.from_pretrained(run / "export").named_parameters())
    assert same(exported, student(best))
    assert not same(exported, student(run / "checkpoints" / "last.ckpt"))
    assert same(KEPT[0], student(run / "checkpoints" / "last.ckpt"))


def test_the_name_of_the_best_checkpoint_tells_the_value(run):
    (best,) = (run / "checkpoints").glob("epoch=*.ckpt")
    callbacks = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (score,) = (float(state["best_model_score"]) for state in callbacks.values() if "best_model_score" in state)
    assert best.stem.partition("-forward_kl=")[2] == f"{score:.4f}"


def test_a_file_name_that_was_chosen_stays():
    assert Checkpoints(monitor="validation/kl", filename="{step}").filename == "{step}"
    assert Checkpoints(monitor="validation/kl", auto_insert_metric_name=False).filename is None
    assert Checkpoints().filename is None


def refused(config_file, *options):
    loading = patch.object(DistillationModule, "configure_model", side_effect=AssertionError("models are loaded"))
    with loading, pytest.raises(SystemExit) as ended:
        main(["fit", "--config", config_file, *options])
    return str(ended.value.code)


@pytest.mark.parametrize("options", [(), ("--checkpoint.monitor=validation/forward_kl", "--checkpoint.save_top_k=0")])
def test_the_best_of_nothing_is_refused_before_anything_is_loaded(options, config_file, tmp_path):
    told = refused(config_file, f"--run_dir={tmp_path}", "--export.folder=e", "--export.which=best", *options)
    assert told == (
        "veto-pl: `export.which`: given `best`, and no `checkpoint.monitor`, expected the metric that tells the best. "
        "Set it, with `checkpoint.mode: max` where more is better."
    )


def test_without_a_best_one_the_last_is_exported_with_a_warning(config_file, tmp_path):
    """The monitor has a value, but no checkpoint was due."""
    options = (*WORST_LAST, "--export.folder=export", "--export.which=best", "--trainer.max_steps=1")
    with (
        patch.object(ModelCheckpoint, "_save_topk_checkpoint"),
        pytest.warns(UserWarning, match="no checkpoint as its best one, so the last one is exported"),
    ):
        main(["fit", "--config", config_file, f"--run_dir={tmp_path}", *options])
    exported = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "export").named_parameters())
    assert same(exported, student(tmp_path / "checkpoints" / "last.ckpt"))


def stopping(**settings):
    named = {"class_path": "EarlyStopping", "init_args": {"monitor": "validation/forward_kl", **settings}}
    return f"--trainer.callbacks={[named]!r}"


def test_a_run_that_stops_early_says_so(config_file, tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    command = ["fit", "--config", config_file, f"--run_dir={tmp_path}"]
    main([*command, stopping(patience=1, min_delta=1e9)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    said = "step 4: Monitored metric validation/forward_kl did not improve in the last 1 records."
    assert summary["steps"] == 4
    assert summary["stopped"].startswith(said)
    assert summary["stopped_by_choice"] is True
    assert f"Stopped early, at {said}" in caplog.text


@pytest.mark.parametrize(
    ("earlier", "told"), [(None, "step 5: it is enough."), ("it is enough. Signaling Trainer to stop.", None)]
)
def test_the_reason_of_an_earlier_part_is_not_told_again(earlier, told, caplog):
    """A callback restores it with its state."""
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    stopper = SimpleNamespace(stopping_reason_message=earlier)
    trainer = SimpleNamespace(callbacks=[stopper], global_step=5, should_stop=True)
    diagnostics = Diagnostics()
    diagnostics.on_fit_start(trainer, None)
    stopper.stopping_reason_message = "it is enough. Signaling Trainer to stop."
    with patch.object(diagnostics, "_write") as written:
        diagnostics.on_fit_end(trainer, None)
    written.assert_called_once_with(trainer, told)
    assert ("Stopped early" in caplog.text) == (told is not None)
