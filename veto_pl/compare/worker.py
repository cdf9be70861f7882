"""One run of a study, in a process of its own: training, then evaluations of what it made."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from veto_pl.compare.jobs import Job
from veto_pl.compare.study import Settings
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.report.run import Run
from veto_pl.storage.atomic import replacing

JOB, DONE, LOG, FAILURE = "job.json", "done.json", "run.log", "failure.txt"
"""What a run is told; that it is finished; what it printed; and why it failed."""


def is_done(job: Job) -> bool:
    """Whether the run is finished, with these very settings."""
    return _fingerprint(job.folder / DONE) == job.fingerprint


def failure(job: Job) -> str | None:
    """Why the last attempt of the run, with these very settings, failed; None where it did not."""
    try:
        reason = (job.folder / FAILURE).read_text(encoding="utf-8")
    except OSError:
        return None
    return reason if _fingerprint(job.folder / JOB) == job.fingerprint else None


def run(job: Job, threads: int, accelerators: str | None = None) -> None:
    """Runs a job, or goes on with it where it was stopped. A failure is written down, and ends the process with 1.

    Args:
        job: what to run.
        threads: of torch.
        accelerators: numbers of those that this process may see, `0,1`; None leaves that as it is.
    """
    signal.signal(signal.SIGTERM, _end)
    if accelerators is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = accelerators
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    # Another study may be at the same stage: wait for it. Outside of the folder, which may have to be removed.
    with FileLock(job.folder.with_name(f".{job.folder.name}.lock")):
        if not is_done(job):
            _run_logged(job, threads)


def _end(*_: object) -> None:
    """Gives back what the process holds before it ends. Where Lightning has put its own handler, that one saves."""
    if signal.getsignal(signal.SIGTERM) is _end:
        sys.exit(128 + signal.SIGTERM)


def _run_logged(job: Job, threads: int) -> None:
    prepare(job)
    with (job.folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            _run(job, threads)
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, VetoError) else f"{type(error).__name__}: {error}"
            (job.folder / FAILURE).write_text(reason[:2000], encoding="utf-8")
            sys.exit(1)


def prepare(job: Job) -> None:
    """Makes the folder. What another job left there is removed; what this one left is gone on with."""
    told = job.folder / JOB
    if told.exists() and _fingerprint(told) != job.fingerprint:
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    (job.folder / "settings.yaml").write_text(yaml.safe_dump(_plain(job.settings), sort_keys=False), encoding="utf-8")
    with replacing(told) as temporary:
        temporary.write_text(json.dumps({"name": job.name, "fingerprint": job.fingerprint}) + "\n", encoding="utf-8")


def command(job: Job) -> list[str]:
    """The training as arguments of `veto-pl`."""
    files = [f"--config={file}" for file in (*job.files, job.folder / "settings.yaml")]
    return ["fit", *files, f"--run_dir={job.folder}", "--ckpt_path=last", "--samples.show=false"]


def _run(job: Job, threads: int) -> None:
    perform = _here(threads) if job.devices == 1 else _as_commands(threads)
    perform([*command(job), "--trainer.log_every_n_steps=1"])
    _refuse_cut_short(job)
    for name, settings in job.evaluations.items():
        perform(_test(job, name, settings))
        _refuse_validation_rows(job.folder / name / "test.json")
    _remove_checkpoints(job)
    with replacing(job.folder / DONE) as temporary:  # as told at the start: files may have changed since
        shutil.copyfile(job.folder / JOB, temporary)


def _here(threads: int) -> Callable[[list[str]], object]:
    """Runs commands of `veto-pl` in this process, which spares the seconds that a start takes."""
    import torch
    from lightning.pytorch import Trainer

    from veto_pl.cli.build import VetoCLI
    from veto_pl.cli.streams import leave_out_noise
    from veto_pl.plugins import load_plugins

    class Alone(VetoCLI):
        """Refuses several processes: Lightning would start them with the arguments of `veto-pl compare`."""

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            if trainer.world_size > 1:
                raise ConfigurationError(
                    f"`devices` of a study: given 1, but the run's trainer asks for {trainer.world_size} processes. "
                    "Set it to that number."
                )
            return trainer

    torch.set_num_threads(threads)
    leave_out_noise()
    load_plugins()
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    return Alone


def _as_commands(threads: int) -> Callable[[list[str]], object]:
    """Runs commands of `veto-pl` as a shell does, so that they can start more processes."""

    def perform(arguments: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen([sys.executable, "-m", "veto_pl", *arguments], env=environment)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        if code := process.wait():
            raise VetoError(f"`veto-pl {arguments[0]}` ended with {code}; its output is in {LOG} of the run.")

    return perform


def _refuse_cut_short(job: Job) -> None:
    """A guard ends a fit early without an exception, and a stop may cost the last validation; neither is comparable."""
    summary = json.loads((job.folder / "summary.json").read_text(encoding="utf-8"))
    if "stopped" in summary:
        _remove_checkpoints(job)  # or the next attempt would go on behind the stop
        raise VetoError(f"The run ended early: {summary['stopped']}")
    curves = Run(job.name, job.folder).curves()
    trained, validated = (
        max((curve.steps[-1] for name, curve in curves.items() if name.startswith(part)), default=-1)
        for part in ("train/", "validation/")
    )
    if "budget" in job.settings and 0 <= validated < trained:
        _remove_checkpoints(job)
        raise VetoError("The run was stopped in its last validation. The same command runs it again.")


def _refuse_validation_rows(test: Path) -> None:
    """`veto-pl test` falls back on the validation split, by which the search has chosen."""
    if json.loads(test.read_text(encoding="utf-8"))["split"] != "test":
        raise ConfigurationError(
            "A comparison tests on the test split, but the task of `data.task` has none. Set its `test_size`, or name "
            "its file of test rows."
        )


def _remove_checkpoints(job: Job) -> None:
    for checkpoint in (*job.folder.glob("last*.ckpt"), *job.folder.glob("checkpoints/last*.ckpt")):
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


def _test(job: Job, name: str, settings: Settings) -> list[str]:
    """`veto-pl test` of the exported student, into a folder of its own."""
    folder = job.folder / name
    folder.mkdir(exist_ok=True)
    student = {"class_path": "Pretrained", "init_args": {"path": str(job.folder / "export")}}
    told = {**settings, "model": {**settings.get("model", {}), "student": student}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(_plain(told), sort_keys=False), encoding="utf-8")
    files = (*job.files, job.folder / "settings.yaml", folder / "settings.yaml")
    return ["test", *(f"--config={file}" for file in files), f"--run_dir={folder}", "--trainer.logger=false"]


def _fingerprint(path: Path) -> str | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told.get("fingerprint") if isinstance(told, Mapping) else None


def _plain(value: object) -> object:
    """Tuples as lists: YAML knows no others."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
