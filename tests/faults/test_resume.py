"""A run that was stopped anywhere and resumed is, to the bit, the run that was not stopped."""

import errno
import itertools
import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from veto_pl import DistillationModule
from veto_pl.callbacks import Checkpoints, SampleTable
from veto_pl.data import RankSampler
from veto_pl.storage import checkpoint_io
from veto_pl.storage.resume import differences

from .conftest import WORDS, assert_equal_runs, curves, state
from .faults import StopError, die_in, fault, fit, raising

BY_EPOCH = ("--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1",
            "--trainer.val_check_interval=1.0", "--checkpoint.every_n_train_steps=null")  # fmt: skip


@pytest.fixture(scope="session")
def references(tmp_path_factory, config_file):
    """Runs that nothing stops, by their options."""
    runs = {}

    def reference(*options):
        if options not in runs:
            runs[options] = tmp_path_factory.mktemp("reference")
            fit(config_file, runs[options], *options)
        return runs[options]

    return reference


STREAMED = ("--data.task.init_args.streaming=true", "--data.validation_batch_size=5")
EACH = "--checkpoint.every_n_train_steps=1"
LIMITED = ("--trainer.limit_train_batches=4", "--trainer.max_steps=4", "--trainer.val_check_interval=7")
EVERY_OTHER = ("--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2",
               "--trainer.val_check_interval=4")  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "where", "count"),
    [
        (DistillationModule, "training_step", 4),  # inside the second window
        pytest.param(DistillationModule, "training_step", 6, marks=pytest.mark.slow),  # the first batch of an epoch
        (DistillationModule, "on_before_optimizer_step", 3),  # the window that the end of the epoch cuts short
        (SampleTable, "on_validation_batch_end", 5),  # counted from the baseline's: inside a window's validation
        (SampleTable, "on_validation_end", 4),  # after a validation is logged, before it is over
        (Checkpoints, "on_train_batch_end", 9),  # after the update, before its metrics are logged
        pytest.param(Checkpoints, "on_train_epoch_end", 1, marks=pytest.mark.slow),
    ],
)
def test_an_exception_loses_nothing(owner, where, count, config_file, references, tmp_path):
    with fault(owner, where, count, raising), pytest.raises(StopError):
        fit(config_file, tmp_path)
    stopped_at = state(tmp_path)["global_step"]
    with fault(DistillationModule, "training_step", 1, lambda: None) as calls:
        fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, references())
    # 14 micro-batches in 8 windows; the micro-batches of complete ones are not repeated.
    assert calls() == 14 - [0, 2, 4, 5, 7, 9, 10, 12, 14][stopped_at]


@pytest.mark.parametrize(
    ("owner", "where", "count", "options"),
    [
        (DistillationModule, "training_step", 2, ()),  # before there is any checkpoint
        pytest.param(DistillationModule, "training_step", 10, (), marks=pytest.mark.slow),
        (DistillationModule, "validation_step", 10, ()),
        pytest.param(Checkpoints, "on_train_epoch_end", 2, (), marks=pytest.mark.slow),
        (DistillationModule, "training_step", 9, ("--data.num_workers=2", "--data.shuffle=false")),
        (DistillationModule, "training_step", 9, STREAMED),
        (DistillationModule, "training_step", 12, (*STREAMED, "--data.num_workers=1", "--data.shuffle_buffer=3")),
        (DistillationModule, "validation_step", 6, BY_EPOCH),
        pytest.param(DistillationModule, "training_step", 7, BY_EPOCH, marks=pytest.mark.slow),
        (SampleTable, "on_validation_start", 2, EVERY_OTHER),
    ],
)
def test_a_killed_process_loses_nothing(owner, where, count, options, config_file, references, tmp_path):
    assert die_in(owner, where, count, config_file, tmp_path, *options)
    fit(config_file, tmp_path, *options)
    assert_equal_runs(tmp_path, references(*options))


@pytest.mark.parametrize(("count", "options"), [(4, LIMITED), (9, EVERY_OTHER)])
def test_an_exception_at_the_end_of_what_a_limit_or_an_interval_cuts(count, options, config_file, references, tmp_path):
    """The last micro-batch that a limit leaves of an epoch, and the one before the first validation of the run."""
    with fault(Checkpoints, "on_train_batch_end", count, raising), pytest.raises(StopError):
        fit(config_file, tmp_path, *options)
    fit(config_file, tmp_path, *options)
    assert_equal_runs(tmp_path, references(*options))


def test_a_run_that_dies_again_and_again_gets_there(config_file, references, tmp_path):
    """Three micro-batches each time; a checkpoint after every step keeps one window of them."""
    deaths = 0
    while die_in(DistillationModule, "training_step", 4, config_file, tmp_path, EACH):
        deaths += 1
        assert deaths < 12
    assert deaths >= 4
    assert_equal_runs(tmp_path, references())


def test_the_validation_after_the_last_step_is_made_up_for(config_file, references, tmp_path):
    """The run has all its steps; only Lightning's own bookkeeping would call it complete."""
    options = ("--trainer.max_steps=5", "--trainer.val_check_interval=9")
    with fault(SampleTable, "on_validation_batch_end", 5, raising), pytest.raises(StopError):
        fit(config_file, tmp_path, *options)
    assert state(tmp_path)["global_step"] == 5
    with (
        fault(DistillationModule, "training_step", 1, lambda: None) as trained,
        fault(DistillationModule, "validation_step", 1, lambda: None) as validated,
    ):
        fit(config_file, tmp_path, *options)
    assert (trained(), validated()) == (0, 3)
    assert_equal_runs(tmp_path, references(*options))


def test_a_row_that_cannot_be_read_loses_nothing(config_file, references, tmp_path, caplog):
    """The window before it is whole, and not saved yet; whether a validation follows is asked again."""
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    with fault(DistillationModule, "on_before_batch_transfer", 6, raising), pytest.raises(StopError):
        fit(config_file, tmp_path)  # the third micro-batch, behind three of the baseline
    assert state(tmp_path)["global_step"] == 1
    assert "last.ckpt` holds step 1;" in caplog.text
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, references())


def test_a_validation_that_is_no_longer_due_costs_no_further_step(config_file, tmp_path):
    options = ("--trainer.max_steps=5", "--trainer.val_check_interval=9")
    with fault(SampleTable, "on_validation_batch_end", 5, raising), pytest.raises(StopError):
        fit(config_file, tmp_path, *options)
    with fault(DistillationModule, "training_step", 1, lambda: None) as trained:
        fit(config_file, tmp_path, "--trainer.max_steps=5", "--trainer.val_check_interval=100")
    assert (trained(), state(tmp_path)["global_step"]) == (0, 5)


def test_an_update_that_was_cut_short_is_never_saved(config_file, references, tmp_path):
    """AdamW stops between its moments and the weights; the checkpoint of two steps before stays."""
    optimizer, calls = import_module("torch.optim.adam"), itertools.count(1)
    original = optimizer.adam

    def cut(params, grads, exp_avgs, *rest, **options):
        if next(calls) == 4:
            torch._foreach_add_(exp_avgs, 1.0)
            raise StopError
        return original(params, grads, exp_avgs, *rest, **options)

    with patch.object(optimizer, "adam", cut), pytest.raises(StopError):
        fit(config_file, tmp_path)
    assert state(tmp_path)["global_step"] == 2
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, references())


def test_a_longer_run_goes_on_inside_the_epoch(config_file, tmp_path):
    flat = ("--model.lr_schedule=Constant", "--model.lr_schedule.value=1")
    fit(config_file, tmp_path / "once", *flat)
    fit(config_file, tmp_path / "twice", *flat, "--trainer.max_steps=5")
    with pytest.warns(UserWarning, match=r"other settings than before: trainer\.max_steps: 5 -> 8\."):
        fit(config_file, tmp_path / "twice", *flat)
    assert_equal_runs(tmp_path / "twice", tmp_path / "once")


def test_another_batch_size_goes_on_at_the_same_row(config_file, tmp_path):
    seen = []
    original = DistillationModule.training_step

    def watching(self, batch, batch_idx):
        seen.append([self.tokenizer.decode(row[mask]) for row, mask in zip(*parts(batch), strict=True)])
        return original(self, batch, batch_idx)

    def parts(batch):
        return batch.input_ids, batch.attention_mask

    options = ("--data.shuffle=false", EACH)
    with patch.object(DistillationModule, "training_step", watching):
        with fault(DistillationModule, "on_before_optimizer_step", 2, raising), pytest.raises(StopError):
            fit(config_file, tmp_path, *options)
        assert [len(batch) for batch in seen] == [2, 2, 2, 2]
        seen.clear()
        more = ("--data.batch_size=5", "--trainer.accumulate_grad_batches=1", "--trainer.max_steps=4")
        with pytest.warns(UserWarning, match="other settings than before: data.batch_size: 2 -> 5"):
            fit(config_file, tmp_path, *options, *more)
    words = [[text.removesuffix(">") for text in batch] for batch in seen]
    # One step had used four rows. Then come those that are left of the epoch, and the next one.
    assert words == [WORDS[4:9], WORDS[9:], WORDS[:5]]


def test_a_fresh_run_keeps_the_checkpoint_of_an_earlier_one_apart(config_file, references, tmp_path):
    shutil.copytree(references(), tmp_path, dirs_exist_ok=True)
    fit(config_file, tmp_path, "--ckpt_path=null", "--trainer.max_steps=1")
    assert state(tmp_path)["global_step"] == 1
    earlier = torch.load(tmp_path / "checkpoints" / "earlier.ckpt", weights_only=True)
    assert earlier["global_step"] == 8
    assert {row["step"] for row in curves(tmp_path)} == {"0", "1"}


def test_a_complete_run_is_left_as_it_is(config_file, references, tmp_path):
    shutil.copytree(references(), tmp_path, dirs_exist_ok=True)
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, references())


def test_only_what_weights_or_order_depend_on_is_a_difference():
    before = "{model: {seed: 0, evaluation: {top_p: 1}}, data: {num_workers: 0}, trainer: {devices: 1, logger: true}}"
    after = "{model: {seed: 1, evaluation: {top_p: 0.5}}, data: {num_workers: 2}, trainer: {devices: 2, logger: false}}"
    assert differences(before, after) == ["model.seed: 0 -> 1", "trainer.devices: 1 -> 2"]
    assert differences(before, before) == []


@given(length=st.integers(1, 40), world=st.integers(1, 5), epoch=st.integers(0, 3), data=st.data())
def test_any_number_of_ranks_goes_on_at_the_same_row(length, world, epoch, data):
    row = data.draw(st.integers(0, length))
    alone = RankSampler(length, seed=3)
    alone.set_epoch(epoch)
    order = list(alone)
    ranks = [RankSampler(length, rank, world, seed=3, even=True) for rank in range(world)]
    left = {sampler.start_at(epoch, row) for sampler in ranks}
    shares = [list(sampler) for sampler in ranks]
    assert {len(share) for share in shares} == left == {(length - row) // world}
    dealt = [row for together in zip(*shares, strict=True) for row in together]
    assert dealt == order[row : row + len(dealt)]
    for sampler in ranks:
        sampler.set_epoch(epoch + 1)
        assert len(list(sampler)) == len(sampler) == length // world


def full(count):
    """A disk that is full for one save, the `count`-th."""
    original, calls = checkpoint_io.write_checkpoint, itertools.count(1)

    def write(checkpoint, path):
        if next(calls) == count:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(checkpoint, path)

    return patch.object(checkpoint_io, "write_checkpoint", write)


def test_a_disk_that_is_full_for_a_while_does_not_stop_a_run(config_file, references, tmp_path):
    with full(2), pytest.warns(UserWarning, match=r"last\.ckpt could not be written: .*No space left"):
        fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, references())


def test_a_full_disk_stops_a_run_that_wants_it_so(config_file, references, tmp_path):
    """The save on the way out finds room again."""
    with full(2), pytest.raises(OSError, match="No space left"):
        fit(config_file, tmp_path, "--checkpoint.on_failed_save=stop")
    assert state(tmp_path)["global_step"] == 4
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, references())


def test_the_best_checkpoints_are_kept_beside_the_last(config_file, tmp_path):
    best = ("--checkpoint.monitor=validation/forward_kl", "--checkpoint.save_top_k=2", "--checkpoint.filename={step}")
    fit(config_file, tmp_path, *best, "--checkpoint.every_n_train_steps=null")
    kept = {str(path) for path in (tmp_path / "checkpoints").glob("step=*.ckpt")}
    (callback,) = [part for name, part in state(tmp_path)["callbacks"].items() if name.startswith("Checkpoints")]
    measured = [float(row["validation/forward_kl"]) for row in curves(tmp_path)[1:] if row["validation/forward_kl"]]
    assert sorted(map(float, callback["best_k_models"].values())) == pytest.approx(sorted(measured)[:2])
    assert kept == set(callback["best_k_models"])


def test_the_rows_that_a_checkpoint_counts_are_on_the_disk_before_it(config_file, tmp_path):
    """Else a power cut could leave a checkpoint whose record has lost its end."""
    synced, original = [], os.fsync

    def sync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        original(descriptor)

    with patch.object(os, "fsync", sync):
        fit(config_file, tmp_path, "--trainer.max_steps=2", "--trainer.val_check_interval=4")
    checkpoint = synced.index(".last.ckpt.writing")
    assert {"metrics.csv", "samples.jsonl"} <= set(synced[checkpoint - 2 : checkpoint])


def test_an_unshuffled_stream_trains_as_the_file_does(config_file, references):
    order = "--data.shuffle=false"
    assert_equal_runs(references("--data.task.init_args.streaming=true", order), references(order))


@pytest.fixture
def own_rows(config_file, tmp_path):
    """The configuration with rows that may change; gives its file, and writes the rows."""
    settings, rows = yaml.safe_load(Path(config_file).read_text()), tmp_path / "own.jsonl"
    settings["data"]["task"]["init_args"] |= {"train": str(rows), "validation": str(rows)}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(settings))

    def write(words, completion=lambda word: word[::-1]):
        lines = [json.dumps({"prompt": f"{word}>", "completion": completion(word)}) for word in words]
        rows.write_text("\n".join(lines))

    return str(path), write


CHANGED = "The run goes on with other rows than before"


@pytest.mark.parametrize(
    ("words", "options", "says"),
    [
        (WORDS[:4], {}, r"`train` had 10 rows and has 4 rows; `validation` had 10 rows and has 4 rows\."),
        (WORDS * 2, {}, r"`train` had 10 rows and has 20 rows"),
        (WORDS[::-1], {}, r"`train` has 10 rows as before, but with other content; `validation` has"),
        (WORDS, {"completion": "".join}, r"`train` has 10 rows as before, but with other content"),
    ],
)
def test_other_rows_than_before_are_told(own_rows, words, options, says, tmp_path):
    config, write = own_rows
    write(WORDS)
    fit(config, tmp_path / "run", "--trainer.max_steps=3")
    write(words, **options)
    with pytest.warns(UserWarning, match=rf"{CHANGED}: .*{says}"):
        fit(config, tmp_path / "run", "--trainer.max_steps=5")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_the_same_rows_are_not_told_and_another_stream_is(own_rows, streaming, tmp_path, recwarn):
    config, write = own_rows
    option = f"--data.task.init_args.streaming={streaming}"
    write(WORDS)
    for steps in (3, 5):
        fit(config, tmp_path / "run", f"--trainer.max_steps={steps}", option)
    assert [str(w.message) for w in recwarn if CHANGED in str(w.message)] == []
    write(WORDS[::-1])
    with pytest.warns(UserWarning, match=CHANGED):
        fit(config, tmp_path / "run", "--trainer.max_steps=7", option)
