"""One run of a study, in a process of its own: training, then evaluations of what it made."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from veto_pl.compare.jobs import DONE, FAILURE, JOB, LOG, Job, Record, merged
from veto_pl.compare.results import EvaluationResult, Summary
from veto_pl.compare.run_kind import RunKind
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.report.run import Run
from veto_pl.storage.atomic import replacing

_NO_TEST_ROWS = (
    "A comparison tests on the test split, but the task of `data.task`, or what `data.images` names, has none. Set its "
    "`test_size`, or name its file of test rows."
)


def run(job: Job, threads: int) -> None:
    """Run or resume a job. A failure is written to its folder, and ends the process with exit code 1.

    Args:
        job: what to run.
        threads: of torch, in each process of the run.
    """
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    # Another study may be at the same stage: wait for it. Outside of the folder, which may have to be removed.
    with FileLock(job.folder.with_name(f".{job.folder.name}.lock")):
        if not job.is_done:
            _run_logged(job, threads)


def _exit_on_sigterm(*_: object) -> None:
    """Exit on SIGTERM so that cleanup runs; while Lightning's handler is installed, that one saves instead."""
    if signal.getsignal(signal.SIGTERM) is _exit_on_sigterm:
        sys.exit(128 + signal.SIGTERM)


def _stop_with_parent() -> None:
    """Wait until the parent process is gone, then send SIGTERM to this one, since nobody would get its result."""
    if (parent := parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _run_logged(job: Job, threads: int) -> None:
    prepare(job)
    with (job.folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            perform(job, threads)
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, VetoError) else f"{type(error).__name__}: {error}"
            (job.folder / FAILURE).write_text(reason[:2000], encoding="utf-8")
            sys.exit(1)


def prepare(job: Job) -> None:
    """Make the run's folder. Files of another job in it are removed; those of this job are kept to resume from."""
    file = job.folder / JOB
    earlier = Record.read(file)
    if file.exists() and (earlier is None or earlier.fingerprint != job.fingerprint):
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    (job.folder / "settings.yaml").write_text(yaml.safe_dump(job.settings, sort_keys=False), encoding="utf-8")
    with replacing(file) as temporary:
        record = Record(name=job.name, fingerprint=job.fingerprint)
        temporary.write_text(record.model_dump_json() + "\n", encoding="utf-8")


def perform(job: Job, threads: int) -> None:
    """Train, evaluate and mark the run as done, in a folder that `prepare` has made.

    Raises:
        VetoError: the run ended early, or has nothing that can be compared.
    """
    command = _in_this_process(job, threads) if job.devices == 1 else _in_subprocesses(job.kind, threads)
    files = [f"--config={file}" for file in (*job.files, job.folder / "settings.yaml")]
    command(["fit", *files, f"--run_dir={job.folder}", "--ckpt_path=last", *job.kind.fit_options,
             "--trainer.log_every_n_steps=1"])  # fmt: skip
    _refuse_cut_short(job)
    for name in job.evaluations:
        command(["test", *files, *_test_options(job, name)])
        _refuse_validation_rows(job.folder / name / "test.json")
    _remove_checkpoints(job)
    with replacing(job.folder / DONE) as temporary:  # the record of the start: files may have changed since
        shutil.copyfile(job.folder / JOB, temporary)


def _in_this_process(job: Job, threads: int) -> Callable[[list[str]], object]:
    """Return a function that runs commands of `veto-pl` in this process, which saves the seconds of a start.

    A run that is `tested`, itself or by what its search chooses, is refused before it trains where there are no test
    rows.
    """
    import torch
    from lightning.pytorch import Trainer

    from veto_pl.cli.streams import hide_noise
    from veto_pl.plugins import load_plugins

    class OneProcess(job.kind.command_line()):  # type: ignore[misc]
        """Refuses several processes: Lightning would start them with the arguments of `veto-pl compare`."""

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer: Trainer = super().instantiate_trainer(**kwargs)
            if trainer.world_size > 1:
                raise ConfigurationError(
                    f"`devices` of a study: given 1, but the run's trainer asks for {trainer.world_size} processes. "
                    "Set it to that number."
                )
            if job.tested and not job.kind.has_test_rows(self.datamodule):
                raise ConfigurationError(_NO_TEST_ROWS)
            return trainer

    torch.set_num_threads(threads)
    hide_noise()
    load_plugins()
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    return OneProcess


def _in_subprocesses(kind: RunKind, threads: int) -> Callable[[list[str]], object]:
    """Return a function that runs commands of `veto-pl` as subprocesses, so that they can start others."""

    def command(arguments: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen([sys.executable, "-m", "veto_pl", *kind.command, *arguments], env=environment)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        if code := process.wait():
            raise VetoError(f"`veto-pl {arguments[0]}` ended with {code}; its output is in {LOG} of the run.")

    return command


def _test_options(job: Job, name: str) -> list[str]:
    """Return the options of a test of the trained student, which writes into a folder of its own."""
    folder = job.folder / name
    folder.mkdir(exist_ok=True)
    student, options = job.kind.tested_student(job.folder)
    content = merged(job.evaluations[name], student)
    (folder / "settings.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return [f"--config={folder / 'settings.yaml'}", f"--run_dir={folder}", "--trainer.logger=false", *options]


def _refuse_cut_short(job: Job) -> None:
    """Raise `VetoError` for a fit that a guard ended, or that was stopped before its last validation."""
    summary = Summary.model_validate_json((job.folder / "summary.json").read_bytes())
    if summary.stopped is not None and not summary.stopped_by_choice:
        _remove_checkpoints(job)  # or the next attempt would go on behind the stop
        raise VetoError(f"The run ended early: {summary.stopped}")
    curves = Run(job.name, job.folder).curves()
    trained, validated = (
        max((curve.steps[-1] for name, curve in curves.items() if name.startswith(part)), default=-1)
        for part in ("train/", "validation/")
    )
    if "budget" in job.settings and 0 <= validated < trained:
        _remove_checkpoints(job)
        raise VetoError("The run was stopped in its last validation. The same command runs it again.")


def _refuse_validation_rows(test: Path) -> None:
    """Raise `VetoError` for a test on the validation split, on which the search has already chosen settings."""
    if EvaluationResult.model_validate_json(test.read_bytes()).split != "test":
        raise ConfigurationError(_NO_TEST_ROWS)


def _remove_checkpoints(job: Job) -> None:
    for checkpoint in (*job.folder.glob("last*.ckpt"), *job.folder.glob("checkpoints/last*.ckpt")):
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
