"""The runs of a study on Ray: on this machine, or on the nodes of a cluster."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from veto_pl.compare.jobs import LOG, Job
from veto_pl.compare.node import STOP_SECONDS, Origin, run_in_process
from veto_pl.core.extras import require_extra
from veto_pl.exceptions import ConfigurationError, VetoError

Finished = Callable[[Job, str | None, float], None]
"""Called with a run that has ended: why it failed, or None, and the seconds that it took."""
_STORE_BYTES = 100_000_000  # bytes of Ray's object store: runs talk through files
# No statistics of usage, no warning of what a later Ray may do, and workers that are as nice as any other program.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
_POLL_SECONDS = 10.0  # seconds between looks whether there is still a node that can take a run
# The paths of sockets are short, and those of temporary folders on a Mac are not.
_SHORT_FOLDER = "/tmp" if sys.platform == "darwin" else None


@dataclass(frozen=True)
class Share:
    """What each run gets.

    Args:
        cores: that Ray sets aside for the run, on one node.
        gpus: of the same node; a part of one where more runs than GPUs are asked for.
        runs: at a time.
    """

    cores: float
    gpus: float
    runs: int

    @classmethod
    def of(cls, nodes: Sequence[tuple[float, float]], devices: int = 1, workers: int | None = None) -> Share:
        """Divide nodes evenly among runs.

        Args:
            nodes: cores and GPUs of each.
            devices: processes of a run, each with a GPU where a node has as many.
            workers: runs at a time; by default one for every `devices` GPUs, or cores where there are no GPUs.

        Raises:
            ConfigurationError: `workers` is below 1, or too many to have `devices` GPUs each, or no node has a core.
        """
        if workers is not None and workers < 1:
            raise ConfigurationError(f"`--workers` must be at least 1, got {workers}.")
        with_gpus = any(gpus >= devices for _, gpus in nodes)
        usable = [node for node in nodes if node[0] >= 1 and (node[1] >= devices or not with_gpus)]
        if not usable:
            raise ConfigurationError("A run needs a core, and no node of the cluster has one.")
        runs = workers or max(sum(int(node[with_gpus] // devices) for node in usable), 1)
        cores, gpus = (
            min(_part(have, math.ceil(runs / len(usable))) for have in kind) for kind in zip(*usable, strict=True)
        )
        if with_gpus and gpus < devices > 1:
            raise ConfigurationError(f"`--workers` {workers} times `devices` {devices} are more than there are GPUs.")
        return cls(cores, min(gpus, devices) if with_gpus else 0, runs)

    def fits(self, node: tuple[float, float]) -> bool:
        """Return whether an idle node has the cores and GPUs of a run."""
        return node[0] >= self.cores and node[1] >= self.gpus


def _part(have: float, runs: int) -> float:
    """Return one run's part of `have` cores or GPUs: a whole number, or a fraction of a single one."""
    return have // runs if have >= runs or not have else 1 / math.ceil(runs / have)


@dataclass
class Cluster:
    """Runs jobs on Ray, which starts with the first of them and ends with the `with` block that this stands in.

    Args:
        folder: where the study writes, which every node has to see.
        devices: processes of each run.
        workers: runs at a time; see `Share.of`.
        address: of a cluster, `HOST:PORT` or `auto`; None stands for this machine alone.

    Raises:
        ConfigurationError: Ray is not installed, there is no cluster, or a node cannot be used.
    """

    folder: Path
    devices: int = 1
    workers: int | None = None
    address: str | None = None
    _block: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()

    def share(self) -> Share:
        """Return what each run gets, of the nodes that there are now."""
        _ = self._origin
        return Share.of(_nodes(), self.devices, self.workers)

    @cached_property
    def _origin(self) -> Origin:
        """What a node has to know of this one; asked for the first time, Ray starts."""
        self._block.enter_context(connected(self.address))
        return self._block.enter_context(_marker_file(self.folder))

    def run(self, jobs: Sequence[Job], finished: Finished) -> dict[Path, str]:
        """Run jobs, each in a process of its own on some node.

        A run whose node leaves is started again on another one, where it goes on from its checkpoint.

        Returns:
            Folder of a run that failed -> why.

        Raises:
            ConfigurationError: a node cannot be used.
            VetoError: no node is left that could take a run.
        """
        import ray

        share = self.share()
        task = ray.remote(num_cpus=share.cores, num_gpus=share.gpus, max_retries=0, max_calls=0)(run_in_process)
        threads = max(int(share.cores / self.devices), 1)
        waiting, failed = deque(jobs), dict[Path, str]()
        running: dict[Any, Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.workers or len(jobs)):  # so nodes that join have runs at once
                    job = waiting.popleft()
                    running[task.remote(job, self._origin, threads)] = job
                ready, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
                if not ready and not any(map(share.fits, _nodes())):
                    raise VetoError(f"No node is left with the {share.cores:g} cores and {share.gpus:g} GPUs of a run.")
                for reference in ready:
                    job = running.pop(reference)
                    try:
                        reason, seconds = _outcome(reference, job)
                    except ray.exceptions.NodeDiedError:
                        waiting.append(job)
                    else:
                        failed |= {} if reason is None else {job.folder: reason}
                        finished(job, reason, seconds)
        finally:
            if running:
                self._origin.marker.unlink(missing_ok=True)  # a cancellation is lost where a worker is just starting
                _cancel(list(running))
        return failed


def _outcome(reference: Any, job: Job) -> tuple[str | None, float]:
    """Return why a run failed, or None, and its seconds; raise `NodeDiedError` where its node has left."""
    import ray

    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.NodeDiedError:
        raise
    except ray.exceptions.RayError as error:
        return f"Ray lost its worker; see {job.folder / LOG}. {error}", math.nan


def _cancel(references: list[Any]) -> None:
    """Cancel runs, and wait until they have saved what they have."""
    import ray

    for reference in references:
        ray.cancel(reference)
    ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS + 10)


def _nodes() -> list[tuple[float, float]]:
    """Return the cores and GPUs of each node that is there."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]


@contextmanager
def _marker_file(folder: Path) -> Iterator[Origin]:
    """Leave a marker in the study's folder as long as the block lasts."""
    origin = Origin(Path.cwd(), folder / f".started-{uuid.uuid4().hex}")
    origin.marker.touch()
    try:
        yield origin
    finally:
        origin.marker.unlink(missing_ok=True)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Start Ray or connect to a cluster while the block lasts, unless Ray is already running.

    SIGTERM interrupts the block as Ctrl-C does.
    """
    os.environ |= _ENVIRONMENT
    require_extra("ray", extra="compare", needed_by="A study")
    import ray

    before, own = signal.getsignal(signal.SIGTERM), not ray.is_initialized()
    with tempfile.TemporaryDirectory(prefix="ray-", dir=_SHORT_FOLDER, ignore_cleanup_errors=True) as temporary:
        try:
            if own:
                _start(address, temporary)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            yield
        finally:
            if own:
                ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def _start(address: str | None, temporary: str, attempts: int = 3) -> None:
    import ray

    here = {"address": "local", "_temp_dir": temporary, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    options: dict[str, Any] = {"address": _reachable(address)} if address else here
    try:
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise ConfigurationError(f"`--address` expected a Ray cluster, got `{address}`: {error}") from error
    except Exception as error:
        if "timed out" not in str(error):
            raise
        if attempts == 1:  # Ray gives itself 30 seconds, which are few where many programs share the cores
            raise VetoError(f"Ray cannot be started, for this machine is too busy: {error}") from error
        ray.shutdown()
        _start(address, temporary, attempts - 1)


def _reachable(address: str) -> str:
    """Return the address, or raise `ConfigurationError` if nothing answers, where Ray would retry for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=_POLL_SECONDS).close()
    except (OSError, ValueError) as error:
        expected = "`--address` expected HOST:PORT of a Ray cluster, or auto"
        raise ConfigurationError(f"{expected}, got `{address}`, where nothing answers: {error}.") from error
    return address
