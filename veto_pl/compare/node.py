"""What Ray's worker does with a run on a node. It imports neither Ray nor torch, and no run happens in it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.context import BaseContext
from pathlib import Path

from veto_pl.compare.jobs import FAILURE, LOG, Job
from veto_pl.exceptions import ConfigurationError

STOP_SECONDS = 60.0
"""Seconds that a run has to save what it has."""


@dataclass(frozen=True)
class Origin:
    """Where a study was started, as its runs have to find it on any node.

    Args:
        directory: the current one, which relative paths start from.
        marker: a file in the study's folder, by which a node shows that it sees that folder. It is there for as long as
            the study wants its runs.
        package: its version.
    """

    directory: Path
    marker: Path
    package: str = version("veto_pl")

    def enter(self) -> None:
        """Go to the directory.

        Raises:
            ConfigurationError: runs of the study cannot be on this node.
        """
        here = f"The node {platform.node()} of the cluster"
        if version("veto_pl") != self.package:
            raise ConfigurationError(f"{here} has veto_pl {version('veto_pl')}, not {self.package}. Install that one.")
        if not (self.directory / self.marker).is_file():
            folder = self.directory / self.marker.parent
            raise ConfigurationError(f"{here} does not see `{folder}`. Set `--out` to a folder that all nodes share.")
        os.chdir(self.directory)


def run_in_process(job: Job, origin: Origin, threads: int) -> tuple[str | None, float]:
    """Run a job in a process of its own, which saves and ends where Ray cancels this call or the marker goes.

    Returns:
        Why it failed, or None, and the seconds that it took.

    Raises:
        ConfigurationError: runs of the study cannot be on this node.
    """
    origin.enter()
    # Ray puts the current folder first, where a file of any name may take the place of a library.
    sys.path[:] = [folder for folder in sys.path if folder not in ("", str(origin.directory))]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    process = _context().Process(target=_run_forked, args=(job, origin, threads, gpus))  # type: ignore[attr-defined]
    since = time.monotonic()
    process.start()
    try:
        while process.exitcode is None and origin.marker.exists():
            process.join(0.1)  # not for long: a cancellation shows between two system calls
    finally:
        process.terminate()
        process.join(STOP_SECONDS)
        process.kill()
    return _failure(job, process.exitcode), time.monotonic() - since


def _context() -> BaseContext:
    """Return the context that starts processes, with the libraries already imported where the system can fork.

    They are forked from a process that lives as long as Ray's worker, which imports once. Nothing that a run does to
    the libraries, such as `torch.use_deterministic_algorithms`, is seen by the next one.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["ray", "veto_pl.compare.execution", "veto_pl.cli.build"])
    return context


def _run_forked(job: Job, origin: Origin, threads: int, gpus: str | None) -> None:
    """Run a job in this process, on this run's GPUs instead of those of the Ray worker's first run."""
    origin.enter()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    from veto_pl.compare.execution import run
    from veto_pl.plugins import find_classes_here

    find_classes_here()
    run(job, threads)


def _failure(job: Job, exit_code: int) -> str | None:
    if exit_code == 0:
        return None if job.is_done else "Its files of settings changed while it ran. The same command runs it again."
    try:
        return (job.folder / FAILURE).read_text(encoding="utf-8")
    except OSError:
        died = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with {exit_code}"
        guess = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
        return f"Its process {died}{guess}; see {job.folder / LOG}."
