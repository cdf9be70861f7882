"""Several ranks on one machine, over gloo, for tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 600.0) -> list[Any]:
    """Call `function(*args)` in each of `ranks` processes, with the environment that torchrun would set.

    Args:
        function: of a module that can be imported; what it returns must be fit for `torch.save`.
        ranks: number of processes.
        args: handed to each.
        timeout: seconds until the processes are killed.

    Returns:
        What each rank returned.

    Raises:
        TimeoutError: the processes did not end in time.
        torch.multiprocessing.ProcessRaisedException: a process raised an exception.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked from a process that has imported the libraries, which takes longer than most of these functions.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["veto_pl.cli.build"])
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(  # type: ignore[no-untyped-call]
            _enter, (ranks, port, folder, function, args), nprocs=ranks, join=False, start_method="forkserver"
        )
        deadline = time.monotonic() + timeout
        while not context.join(max(0.0, deadline - time.monotonic())):  # returns whenever a process ends
            if time.monotonic() >= deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{ranks} ranks did not end within {timeout:g} s.")
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(ranks)]


def _enter(rank: int, ranks: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ranks"}
    os.environ.update({name: str(value) for name, value in (place | launcher).items()})
    torch.set_num_threads(1)
    torch.save(function(*args), Path(folder, str(rank)))
