"""A real process that is sent a signal: it saves, says how to go on, and ends with the usual code."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.debug_runs import debug_run
from veto_pl import DistillationModule
from veto_pl.callbacks.signals import Signals

from .conftest import assert_equal_runs, state
from .faults import StopError, fault, fit, raising


def interrupting():
    raise KeyboardInterrupt


def hanging_up():
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize(("action", "code", "name"), [(hanging_up, 129, "SIGHUP"), (interrupting, 130, "KeyboardInt")])
@pytest.mark.parametrize(("where", "count", "step"), [("training_step", 7, 4), ("validation_step", 5, 2)])
def test_a_closed_terminal_and_an_interrupt_save_first(
    action, code, name, where, count, step, config_file, reference, tmp_path, caplog
):
    """In the middle of a window; inside a validation."""
    handlers = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGINT)
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    with fault(DistillationModule, where, count, action), pytest.raises(SystemExit) as ended:
        fit(config_file, tmp_path)
    signal.signal(signal.SIGINT, handlers[1])  # Lightning ignores it from the first one on
    assert ended.value.code == code
    assert signal.getsignal(signal.SIGHUP) is handlers[0]
    assert f"Stopped by {name}" in caplog.text
    assert state(tmp_path)["global_step"] in (step, step - 1)
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, reference)


def test_a_signal_that_is_ignored_stays_ignored(config_file, reference, tmp_path):
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with fault(DistillationModule, "training_step", 7, hanging_up):
            fit(config_file, tmp_path)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_equal_runs(tmp_path, reference)


def test_a_reader_that_goes_away_ends_no_run(config_file, reference, tmp_path):
    """`veto-pl fit | head -1`, and nobody reads the warnings either."""
    process = start(config_file, tmp_path, training=0, validation=0)
    wait_for(process, "in training_step", 1)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert_equal_runs(tmp_path, reference)


SLURM = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "run", "SLURM_NODEID": "0", "SLURM_LOCALID": "0",
         "SLURM_PROCID": "0"}  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory, config_file):
    run = tmp_path_factory.mktemp("reference")
    fit(config_file, run)
    return run


def start(config_file, run, *options, training=0.1, validation=0.1, **environment):
    slowly = [sys.executable, str(Path(__file__).with_name("slowly.py")), str(training), str(validation)]
    command = [*slowly, "fit", "--config", config_file, "--run_dir", str(run), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)


def wait_for(process, line, times):
    """Reads what the process prints until it has printed a line so often."""
    for printed in process.stdout:
        times -= printed.count(line)
        if times <= 0:
            return
    raise AssertionError(process.stderr.read()[-3000:])


@pytest.mark.parametrize(
    ("line", "times", "step"),
    [pytest.param("in training_step", 7, 4, marks=pytest.mark.slow), ("in validation_step", 2, 2)],
)
def test_sigterm_saves_at_once_and_says_how_to_go_on(line, times, step, config_file, reference, tmp_path):
    """In the middle of an accumulation window, and inside a validation that has batches left."""
    process = start(config_file, tmp_path, validation=1.5 if "validation" in line else 0)
    wait_for(process, line, times)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert f"Stopped by SIGTERM at step {step}. `{tmp_path}/checkpoints/last.ckpt` holds step {step}; " in said
    assert "the same command with `--ckpt_path last` goes on from there." in said
    assert "Traceback" not in said
    assert state(tmp_path)["global_step"] == step
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, reference)


@pytest.mark.slow
def test_slurm_requeues_at_a_point_that_is_whole(config_file, reference, tmp_path, monkeypatch):
    """Its signal comes inside a window; the job that is started again needs no option to go on."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    process = start(config_file, tmp_path / "run", **SLURM, PATH=path)
    wait_for(process, "in training_step", 4)
    process.send_signal(signal.SIGUSR1)
    wait_for(process, "in training_step", 2)
    process.kill()
    process.communicate(timeout=60)
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert (tmp_path / "run" / "hpc_ckpt_1.ckpt").is_file()
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    fit(config_file, tmp_path / "run", "--ckpt_path=null")
    assert_equal_runs(tmp_path / "run", reference)


@pytest.mark.parametrize("told", ["termination", "requeue", "late", None])
def test_one_question_tells_every_rank_what_one_was_told(told):
    """The other rank was told nothing; its votes come by the sum."""
    asked = []

    def reduced(votes, reduce_op):
        asked.append(reduce_op)
        return votes + torch.tensor([told == name for name in ("termination", "requeue", "late")])

    connector, here = SimpleNamespace(received_sigterm=False), Signals()
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduced)
    trainer = SimpleNamespace(world_size=2, strategy=strategy, _signal_connector=connector)
    here._requeue, acted = lambda *signals: acted.append(signals), []
    assert here.agree(trainer) == (told == "late")
    here.act_on_requeue(trainer)
    assert asked == ["sum"]
    assert connector.received_sigterm == (told == "termination")
    assert len(acted) == (told == "requeue")
    here.act_on_requeue(trainer)
    assert len(acted) == (told == "requeue"), "once"


def test_ranks_are_asked_once_in_each_window(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Signals, "agree", lambda self, trainer, *, late=False: asked.append(trainer.global_step))
    options = ("--trainer.accumulate_grad_batches=3", "--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    debug_run("sft", tmp_path, *options, "--export.folder=null")
    assert asked == [1, 2]


TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1", "--ckpt_path=last")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_of_two_processes_stops_both_at_one_point(rank, config_file, tmp_path):
    assert start(config_file, tmp_path / "reference", *TWO, training=0, validation=0).wait(timeout=120) == 0
    process = start(config_file, tmp_path / "run", *TWO, training=0.3, validation=0)
    wait_for(process, "in training_step", 10)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    others = [int(child) for child in children if "slowly.py" in Path(f"/proc/{child}/cmdline").read_text()]
    os.kill([process.pid, *others][rank], signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert said.count("Stopped by SIGTERM") == 1
    assert 0 < state(tmp_path / "run")["global_step"] < 8
    assert start(config_file, tmp_path / "run", *TWO, training=0, validation=0).wait(timeout=120) == 0
    assert_equal_runs(tmp_path / "run", tmp_path / "reference")


LONG = ("--trainer.max_steps=450", "--trainer.val_check_interval=101", "--checkpoint.every_n_train_steps=7")


def lives(process, output, clock, longest) -> bool:
    """Lets a process live for a random time: in one of four lives it dies while it is loading."""
    seconds = clock.uniform(0, 4) if clock.random() < 0.25 else 120
    already = len(output.read_text().split("Restored all states"))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if seconds == 120 and len(output.read_text().split("Restored all states")) > already:
            until, seconds = time.monotonic() + clock.uniform(0, longest), 0
        if process.poll() is not None:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_ends_where_an_undisturbed_one_does(config_file, tmp_path, capsys):
    """SIGKILL at random moments of a process's life, until the command comes through."""
    begun = time.monotonic()
    fit(config_file, tmp_path / "reference", *LONG)
    undisturbed = time.monotonic() - begun
    with fault(DistillationModule, "training_step", 20, raising), pytest.raises(StopError):
        fit(config_file, tmp_path / "run", *LONG)  # so that each life has something to restore
    command = [sys.executable, "-m", "veto_pl", "fit", "--config", config_file, "--run_dir", str(tmp_path / "run"),
               "--ckpt_path", "last", *LONG]  # fmt: skip
    clock, begun, kills, output = random.Random(0), time.monotonic(), 0, tmp_path / "output"
    output.touch()
    while True:
        with output.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        if lives(process, output, clock, undisturbed / 12):
            break
        process.kill()
        process.wait()
        kills += 1
    assert process.returncode == 0, output.read_text()[-3000:]
    assert kills >= 20
    assert_equal_runs(tmp_path / "run", tmp_path / "reference")
    with capsys.disabled():
        print(f"\n{kills} kills in {time.monotonic() - begun:.0f} s")
