"""The record of a run goes on after a stop: nothing lost, nothing twice, columns in their places."""

import csv
import warnings
from unittest.mock import patch

import lightning as L
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from veto_pl import DistillationModule
from veto_pl.callbacks import SampleTable
from veto_pl.cli.streams import hide_noise
from veto_pl.storage.journals import Events, MetricsFile, journals

from .conftest import curves
from .faults import StopError, fault, fit, raising

NUMBERS = st.dictionaries(st.sampled_from("abcd"), st.floats(allow_nan=False), min_size=1)


def log(logger, rows, first=0):
    for step, row in enumerate(rows, first):
        logger.log_metrics(row, step)


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


@given(rows=st.lists(NUMBERS, min_size=1, max_size=8), data=st.data())
def test_a_cut_and_continued_file_is_the_file_of_one_run(rows, data, tmp_path_factory):
    """Whatever was written after the cut, with whatever columns, and wherever a kill has left half a line."""
    kept = data.draw(st.integers(1, len(rows)))
    saved = data.draw(st.integers(kept, len(rows)))
    once, twice = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("twice")
    logger = MetricsFile(str(once))
    log(logger, rows)
    logger.save()
    first = MetricsFile(str(twice))
    log(first, rows[:saved])
    first.save()
    whole = (twice / "metrics.csv").read_bytes()
    (twice / "metrics.csv").write_bytes(whole + data.draw(st.sampled_from([b"", b"1", b'"', b"1.0,2", b"\0\0"])))
    second = MetricsFile(str(twice))
    assert second.position() == saved
    second.cut(None, kept, 0)
    assert second.position() == kept
    log(second, rows[kept:], kept)
    second.save()
    assert (twice / "metrics.csv").read_bytes() == (once / "metrics.csv").read_bytes()


def test_a_full_disk_keeps_the_rows_for_later(tmp_path):
    logger = MetricsFile(str(tmp_path))
    log(logger, [{"a": 1.0}])
    logger.save()
    log(logger, [{"a": 2.0}], 1)
    log(logger, [{"b": 3.0}], 2)
    with (
        patch("veto_pl.storage.checkpoint_io.Path.write_bytes", side_effect=OSError(28, "No space left on device")),
        pytest.warns(UserWarning, match=r"metrics\.csv could not be written: .*No space left"),
    ):
        logger.save()
    assert [row["a"] for row in read(tmp_path)] == ["1.0"]
    assert logger.position() == 3
    logger.save()
    assert [row["step"] for row in read(tmp_path)] == ["0", "1", "2"]
    assert read(tmp_path)[2]["b"] == "3.0"


def test_a_file_that_lost_rows_is_noticed(tmp_path):
    logger = MetricsFile(str(tmp_path))
    log(logger, [{"a": 1.0}])
    logger.save()
    with pytest.warns(UserWarning, match="has 1 rows, but had 5 when the run was stopped"):
        MetricsFile(str(tmp_path)).cut(None, 5, 5)


def test_no_rows_means_no_file(tmp_path):
    logger = MetricsFile(str(tmp_path))
    log(logger, [{"a": 1.0}])
    logger.save()
    logger.cut(None, 0, 0)
    assert not (tmp_path / "metrics.csv").exists()


def test_tensorboard_hides_the_steps_that_are_done_again(tmp_path):
    """The first step is 1; the second run goes on behind the third."""
    for first, last in ((1, 7), (4, 6)):
        logger = Events(str(tmp_path))
        if first > 1:
            logger.cut(None, 0, first - 1)
        log(logger, [{"a": float(first + step)} for step in range(first, last)], first)
        logger.bring_to_disk()
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 2), (2, 3), (3, 4), (4, 8), (5, 9)]


def test_samples_are_cut_by_rows(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 0}\n{"step": 2}\n{"step": 4}\n{"st')
    trainer = L.Trainer(logger=False, default_root_dir=str(tmp_path), callbacks=[SampleTable()], accelerator="cpu",
                        enable_checkpointing=False)  # fmt: skip
    (table,) = journals(trainer)
    table.cut(trainer, 2, 3)
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 0}\n{"step": 2}\n'
    assert table.position() == 2
    table.cut(trainer, 0, 0)
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize("name", ["lightning.pytorch.loggers.CSVLogger", "veto_pl.storage.journals.MetricsFile"])
def test_a_file_of_metrics_that_the_user_has_named_goes_on_after_a_stop(name, config_file, tmp_path):
    """In the configuration, for resumed runs; whatever is deleted is warned of."""
    settings = (
        {"folder": str(tmp_path)} if "veto_pl" in name else {"save_dir": str(tmp_path), "name": "", "version": ""}
    )
    logger = f"--trainer.logger={[{'class_path': name, 'init_args': settings}]!r}"
    with fault(DistillationModule, "training_step", 8, raising), pytest.raises(StopError):
        fit(config_file, tmp_path, logger)
    before = curves(tmp_path)
    assert len(before) > 4
    fit(config_file, tmp_path, logger)
    assert [row["step"] for row in curves(tmp_path)][: len(before)] == [row["step"] for row in before]
    assert len(curves(tmp_path)) == 12


def test_lightnings_warning_that_it_deletes_a_file_is_seen(tmp_path):
    (tmp_path / "metrics.csv").touch()
    with warnings.catch_warnings():
        hide_noise()
        with pytest.warns(UserWarning, match="Previous log files in this directory will be deleted"):
            log(CSVLogger(tmp_path, name="", version=""), [{"a": 1.0}])
