"""Limits on time, memory, processes and files of a program under test."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

Level = Literal["bubblewrap", "unshare", "limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the tests of one completion may use, and how they are shut in.

    Args:
        timeout: seconds of wall-clock time for all tests of a completion.
        memory: MiB of address space for each process.
        processes: processes and threads of a program, itself included.
        file_size: MiB of a file; all files together may have four times as many where the level counts them.
        workers: completions that are judged at once; None for as many as the process has cores.
        protection: `bubblewrap`, `unshare` or `limits`; `auto` takes the first of these that works here.

    Raises:
        ValueError: for a limit that is not positive.
    """

    timeout: float = 10.0
    memory: int = 1024
    processes: int = 16
    file_size: int = 16
    workers: int | None = None
    protection: Literal["auto", "bubblewrap", "unshare", "limits"] = "auto"

    def __post_init__(self) -> None:
        numbers = ("timeout", "memory", "processes", "file_size", "workers")
        for name in numbers:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`Limits.{name}` must be a positive number, got {value!r}.")

    @property
    def threads(self) -> int:
        """The number of completions that are judged at once."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def resources(self) -> dict[str, int]:
        """The values of `RLIMIT_*`, by name."""
        return {
            "AS": self.memory * 2**20,
            "CORE": 0,
            "CPU": math.ceil(self.timeout) + 1,
            "FSIZE": self.file_size * 2**20,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
            "NICE": 0,
            "NOFILE": 128,
            "NPROC": self.processes,
            "RTPRIO": 0,
            "SIGPENDING": 1024,  # timers too; counted for all processes of the user
        }

    @property
    def folder_bytes(self) -> int:
        """The size of the temporary folder in bytes."""
        return 4 * self.file_size * 2**20
