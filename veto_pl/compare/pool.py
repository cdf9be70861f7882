"""Many runs at once, each in a process of its own, so that one that dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from veto_pl.compare.jobs import Job
from veto_pl.compare.worker import FAILURE, LOG, is_done, run
from veto_pl.exceptions import ConfigurationError

Finished = Callable[[Job, str | None, float], None]
"""Told of a run that has ended: why it failed, or None, and the seconds that it took."""


@dataclass(frozen=True)
class Pool:
    """Runs jobs on the cores or accelerators that there are.

    Args:
        workers: runs at a time.
        threads: of each process of a run.
        accelerators: of each run; 0 leaves those that there are to all.
    """

    workers: int
    threads: int
    accelerators: int = 0

    @classmethod
    def of_this_machine(cls, workers: int | None = None, devices: int = 1) -> Pool:
        """As many runs as there are accelerators for; without any, as there are cores for.

        Args:
            workers: runs at a time, which share the cores; None means as many as there are places.
            devices: processes, or accelerators, of each run.

        Raises:
            ConfigurationError: `workers` is below 1.
        """
        import torch

        if workers is not None and workers < 1:
            raise ConfigurationError(f"`--workers` must be at least 1, got {workers}.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        accelerators = torch.cuda.device_count()
        places = workers or max((accelerators or cores) // devices, 1)
        own = devices if places * devices <= accelerators else 0
        return cls(places, max(cores // (places * devices), 1), own)

    def run(self, jobs: Sequence[Job], finished: Finished) -> dict[Path, str]:
        """Runs what is not done yet.

        Returns:
            Folder of a run that failed -> why.
        """
        context = _context()
        waiting = [job for job in jobs if not is_done(job)]
        running: dict[int, tuple[Job, BaseProcess, float]] = {}
        failed: dict[Path, str] = {}
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # runs that are under way save what they have
        try:
            while waiting or running:
                for place in range(self.workers):
                    if waiting and place not in running:
                        job = waiting.pop(0)
                        with _signals_held():  # a process that is half started could not be stopped
                            running[place] = (job, self._start(context, job, place), time.monotonic())
                wait([process.sentinel for _, process, _ in running.values()])
                for place, (job, process, since) in list(running.items()):
                    if process.exitcode is not None:
                        del running[place]
                        if (reason := _failure(job, process.exitcode)) is not None:
                            failed[job.folder] = reason
                        finished(job, reason, time.monotonic() - since)
        finally:
            _stop([process for _, process, _ in running.values()])
            signal.signal(signal.SIGTERM, before)
        return failed

    def _start(self, context: BaseContext, job: Job, place: int) -> BaseProcess:
        own = range(place * self.accelerators, (place + 1) * self.accelerators)
        process = context.Process(  # type: ignore[attr-defined]
            target=run, args=(job, self.threads, ",".join(map(str, own)) or None)
        )
        process.start()
        return process  # type: ignore[no-any-return]


def _context() -> BaseContext:
    """Processes that start with the libraries imported, where the system can fork."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["veto_pl.compare.worker", "veto_pl.cli.build"])
    resource_tracker.ensure_running()  # it unblocks signals where it starts, so it must not start with the first run
    return context


@contextmanager
def _signals_held() -> Iterator[None]:
    """Lets the signals that end a study wait for the end of the block."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with _interrupts_blocked():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that start in the block never see SIGINT, which a terminal sends to all: the study stops them in order.

    Windows cannot block signals.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _failure(job: Job, exit_code: int) -> str | None:
    if exit_code == 0:
        return None if is_done(job) else "Its files of settings changed while it ran. The same command runs it again."
    try:
        return (job.folder / FAILURE).read_text(encoding="utf-8")
    except OSError:
        died = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with {exit_code}"
        guess = " (out of memory?)" if exit_code < 0 and -exit_code == signal.SIGKILL else ""
        return f"Its process {died}{guess}; see {job.folder / LOG}."


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Lets runs save what they have, then ends them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
