"""The cores that a process may use, and how many of them others keep busy."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUP = Path("/proc/stat"), Path("/sys/fs/cgroup")


def allowed_cores() -> int:
    """Return the number of cores that this process may use: by its affinity, and by the quota of its container."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(usable, _quota())))


@dataclass(frozen=True)
class Usage:
    """What has been computed up to a moment.

    Args:
        at: seconds of a clock that only goes forward.
        own: CPU seconds of this process and its ended children.
        all: CPU seconds of everybody, on the cores that this process may use; None where the system does not say.
    """

    at: float
    own: float
    all: float | None

    @classmethod
    def now(cls) -> Usage:
        """Return the usage at this moment."""
        return cls(time.monotonic(), sum(os.times()[:4]), _busy_seconds())

    def of_others(self, later: Usage) -> float | None:
        """Return how many cores other processes kept busy between two moments, on average; None if it is not known."""
        if self.all is None or later.all is None or later.at <= self.at:
            return None
        return max(0.0, (later.all - self.all - (later.own - self.own)) / (later.at - self.at))


def _busy_seconds() -> float | None:
    """Read /proc/stat: of each core, the ticks spent for users, niced ones, the kernel, interrupts and other guests."""
    try:
        lines = [line.split() for line in PROC.read_text().splitlines() if line.startswith("cpu")]
        usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        busy = [sum(map(int, (*cells[1:4], *cells[6:9]))) for cells in lines if cells[0] in usable]
        return sum(busy) / os.sysconf("SC_CLK_TCK") if busy else None
    except (OSError, ValueError, AttributeError):
        return None


def _quota() -> float:
    """Return the cores that the quota of a container comes to; infinite without one."""
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # no quota is `max`
        return math.inf
