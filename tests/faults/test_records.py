"""What a run writes belongs to this run, is counted wherever it lies, and is not lost to a disk that refuses it."""

import errno
import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import Checkpoints, Diagnostics, PredictionFile, SampleTable
from veto_pl.data import ExactMatch, JsonLines, PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.models.blueprint import student_files
from veto_pl.rollouts import Sampling
from veto_pl.storage.checkpoint_io import AtomicCheckpointIO
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.journals import MetricsFile
from veto_pl.testing.tiny import ALPHABET, tiny_source
from veto_pl.training.nonfinite import FAULTS

from .explosions import QUIET, module_of, prepare, train
from .faults import fault, fit
from .test_logs import log, read

FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def refusing(name, *modes):
    """Lets nobody open a file of this name for writing."""
    original = Path.open

    def opening(self, mode="r", *args, **kwargs):
        if self.name == name and mode in modes:
            raise FULL
        return original(self, mode, *args, **kwargs)

    with patch.object(Path, "open", opening):
        yield


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def refusals():
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [text for warning in caught if "could not be written" in (text := str(warning.message))]


def test_a_run_that_starts_afresh_begins_every_record_anew(config_file, tmp_path):
    for name in ("samples.jsonl", FAULTS):
        (tmp_path / name).write_text('{"step": 999}\n')
    fit(config_file, tmp_path, "--trainer.max_steps=2", "--checkpoint.save_last=false")
    assert not (tmp_path / FAULTS).exists()
    assert 999 not in {row["step"] for row in lines(tmp_path / "samples.jsonl")}


def test_a_checkpoint_counts_the_rows_that_wait_for_the_disk(tmp_path):
    """Else a resumed run would forget rows that were written after all."""
    checkpoint = Checkpoints(dirpath=str(tmp_path / "kept"))
    with refusing(FAULTS, "ab"):
        train("loss", prepare(tmp_path), str(tmp_path), 3, enable_checkpointing=True,
              callbacks=[Diagnostics(), checkpoint])  # fmt: skip
    assert not (tmp_path / FAULTS).exists()
    kept = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert kept["veto_pl_progress"]["rows"][FAULTS] == 1


def test_a_checkpoint_brings_the_rows_that_wait_to_the_disk(tmp_path):
    """The disk has room again when the last step is over."""
    refused = refusing(FAULTS, "ab")
    refused.__enter__()
    with fault(Diagnostics, "bring_to_disk", 1, lambda: refused.__exit__(None, None, None)):
        train("loss", prepare(tmp_path), str(tmp_path), 2, enable_checkpointing=True,
              callbacks=[Diagnostics(), Checkpoints(dirpath=str(tmp_path / "kept"))])  # fmt: skip
    assert [row["step"] for row in lines(tmp_path / FAULTS)] == [2]


def test_a_second_run_of_the_same_parts_writes_into_its_own_folder(tmp_path):
    module = module_of("loss", evaluation=Sampling(temperature=0.0, max_new_tokens=4))
    samples, rows = SampleTable(show=False), prepare(tmp_path)
    data = PromptDataModule(
        JsonLines(train=rows, validation=rows, verifier=ExactMatch()),
        batch_size=4,
        shuffle=False,
        max_prompt_tokens=32,
        max_completion_tokens=32,
    )
    for folder in (tmp_path / "one", tmp_path / "two"):
        trainer = L.Trainer(default_root_dir=str(folder), max_steps=3, limit_val_batches=1, accelerator="cpu",
                            num_sanity_val_steps=0, callbacks=[samples], use_distributed_sampler=False,
                            **QUIET)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, data)
        assert samples.position() == len(lines(folder / "samples.jsonl")) > 0
        assert [row["step"] for row in lines(folder / FAULTS)] == [2]


def run_of(model, template):
    return model, CharacterTokenizer(ALPHABET).load(), template


def test_a_second_run_describes_its_own_template():
    model = tiny_source().load()
    runs = [run_of(model, PlainTemplate(format=f"{{prompt}}{sign}")) for sign in "ab"]
    first, second = (student_files(*run)["chat_template.jinja"] for run in runs)
    assert first != second
    assert student_files(*runs[1]) is student_files(*runs[1]), "it is written once"


def test_a_description_that_the_disk_refuses_is_tried_again():
    run = run_of(tiny_source().load(), PlainTemplate())
    with patch("veto_pl.models.blueprint.tempfile.TemporaryDirectory", side_effect=FULL), refusals() as said:
        assert student_files(*run) is None
        assert student_files(*run) is None
    assert len(said) == 1
    assert "tries again" in said[0]
    assert "config.json" in student_files(*run)


def raised(make):
    try:
        try:
            raise FULL
        except OSError as error:
            make(error)
    except Exception as error:
        return error


def without_cause(_):
    raise ValueError("a fault") from None


def of_the_package(error):
    raise ConfigurationError("a sentence of its own") from error


@pytest.mark.parametrize("make", [without_cause, of_the_package])
def test_a_fault_that_is_found_while_a_refusal_is_handled_is_raised(make):
    error = raised(make)
    with pytest.raises(type(error)), warn_if_unwritten("a file"):
        raise error


def test_a_file_of_metrics_that_cannot_be_cut_is_cut_later(tmp_path):
    logger = MetricsFile(str(tmp_path))
    log(logger, [{"a": 1.0}, {"a": 2.0}, {"b": 3.0}])
    logger.save()
    with patch("veto_pl.storage.journals.replacing", side_effect=FULL), refusals() as said:
        logger.cut(None, 1, 1)
        assert logger.position() == 1
        log(logger, [{"a": 4.0}], 1)
        logger.save()
    assert len(said) == 1
    logger.save()
    assert read(tmp_path) == [{"a": "1.0", "step": "0"}, {"a": "4.0", "step": "1"}]


def test_a_half_written_row_on_a_full_disk_lets_a_run_begin(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,step\n1.0,0\n2.")
    with patch("veto_pl.storage.journals.replacing", side_effect=FULL), refusals() as said:
        logger = MetricsFile(str(tmp_path))
        assert logger.position() == 1
    assert len(said) == 1
    log(logger, [{"a": 2.0}], 1)
    logger.save()
    assert read(tmp_path) == [{"a": "1.0", "step": "0"}, {"a": "2.0", "step": "1"}]


@pytest.mark.parametrize(("part", "name"), [(SampleTable(), "samples.jsonl"), (Diagnostics(), FAULTS)])
def test_rows_are_cut_without_room_and_a_read_only_file_ends_no_run(part, name, tmp_path):
    path = tmp_path / name
    path.write_text('{"step": 0}\n{"step": 2}\n{"st')
    trainer = L.Trainer(default_root_dir=str(tmp_path), accelerator="cpu", callbacks=[part], **QUIET)
    part.setup(trainer, None, "fit")
    with (
        refusing(name, "r+b"),
        patch("veto_pl.storage.checkpoint_io.Path.write_bytes", side_effect=FULL),
        refusals() as said,
    ):
        part.cut(trainer, 1, 1)
    assert len(said) == 1
    assert part.position() == 2
    with patch("veto_pl.storage.checkpoint_io.Path.write_bytes", side_effect=FULL):
        part.cut(trainer, 1, 1)
    assert path.read_text() == '{"step": 0}\n'
    assert part.position() == 1


def test_predictions_begin_on_a_disk_that_takes_no_new_file(tmp_path):
    trainer = L.Trainer(default_root_dir=str(tmp_path), accelerator="cpu", **QUIET)
    part = PredictionFile()
    with patch.object(Path, "write_text", side_effect=FULL), refusals() as said:
        part.on_predict_start(trainer, None)
    part.write_on_batch_end(trainer, None, [{"prompt": "a"}])
    part.on_predict_end(trainer, None)
    assert len(said) == 1
    assert lines(tmp_path / "predictions.jsonl") == [{"prompt": "a"}]


def test_an_earlier_checkpoint_that_cannot_be_renamed_ends_no_run(config_file, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("of an earlier run")
    with patch("veto_pl.storage.checkpoint_io.swap_in", side_effect=FULL), refusals() as said:
        L.Trainer.fit(
            L.Trainer(default_root_dir=str(tmp_path), max_steps=1, limit_val_batches=0, accelerator="cpu",
                      callbacks=[Checkpoints()], **QUIET | {"enable_checkpointing": True}),
            module_of("loss"),
            PromptDataModule(JsonLines(train=prepare(tmp_path)), max_prompt_tokens=32, max_completion_tokens=32),
        )  # fmt: skip
    assert [text for text in said if "earlier.ckpt" in text]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_folder_that_somebody_fills_during_the_run_does_not_end_it_without_its_summary(config_file, tmp_path):
    def fill():
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "thesis.tex").write_text("mine")

    with (
        fault(DistillationModule, "training_step", 1, fill),
        pytest.warns(UserWarning, match=r"not exported.*holds `thesis\.tex`.*`veto-pl export CHECKPOINT FOLDER`"),
    ):
        fit(config_file, tmp_path, "--export.folder=export", "--trainer.max_steps=1", "--validate_first=false")
    assert (tmp_path / "export" / "thesis.tex").read_text() == "mine"
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 1


def test_checkpoints_that_cannot_be_written_are_warned_of_once_until_one_can(tmp_path):
    writer, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for _ in range(2):
        with patch("veto_pl.storage.checkpoint_io.torch.save", side_effect=FULL), refusals() as said:
            for _ in range(3):
                writer.save_checkpoint({"state_dict": {}}, path)
                assert writer.failure is FULL
        assert len(said) == 1
        assert "The run goes on, and tries again" in said[0]
        writer.save_checkpoint({"state_dict": {}}, path)
        assert writer.failure is None
