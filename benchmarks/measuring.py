"""Shared measuring: interleaved times, peak memory, fitted exponents, Markdown tables and the conditions of a run.

Times are ratios to a reference that runs in the same process and the same round, a few cases earlier at most, so that a
busy neighbour or a changing frequency hits both. With one thread they are processor time, user and system, which does
not count while a neighbour has the core; with several they are wall-clock time.

The peak is the kernel's high-water mark of the process's resident memory above its level just before the call. Before
each call, memory that `malloc` keeps for later goes back to the kernel, so that nothing is hidden in its free lists;
Linux with glibc is needed for that.
"""

import ctypes
import datetime
import gc
import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

Case = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds, and the highest peak.

    Args:
        seconds: of one call.
        ratio: to the reference of the same round.
        peak: bytes above the level before the call.
    """

    seconds: float
    ratio: float
    peak: int


def clock() -> float:
    """Seconds: of the processor with one thread, of the wall with several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def interleaved(cases: dict[str, Case], rounds: int, reference: Case, every: int = 4) -> dict[str, Measured]:
    """Runs all cases once a round, in an order that rotates; the reference runs before every few of them."""
    seconds, ratios, peaks = ({name: [] for name in cases} for _ in range(3))
    names = list(cases)
    for index in range(rounds):
        shift = index * len(names) // rounds
        for position, name in enumerate(names[shift:] + names[:shift]):
            if position % every == 0:
                base = measured(reference)[0]
            taken, peak = measured(cases[name])
            seconds[name].append(taken)
            ratios[name].append(taken / base)
            peaks[name].append(peak)
    median = statistics.median
    return {n: Measured(median(seconds[n]), median(ratios[n]), max(peaks[n])) for n in names}


def measured(case: Case) -> tuple[float, int]:
    """Seconds and peak bytes of one call."""
    gc.collect()
    _trim()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    start = clock()
    case()
    return clock() - start, _status("VmHWM") - before


def peak_memory(case: Case) -> int:
    """Bytes that the process needed above its level before the call, what the call leaves behind included."""
    return measured(case)[1]


def fit_exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The slope of log y over log x by least squares: 1 where y grows in proportion to x, 0 where it does not grow.

    Example:
        >>> round(fit_exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def matrix_rate(size: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations per second of a large float32 matrix product, the best of a few, at these threads."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(measured(lambda: a @ b)[0] for _ in range(rounds))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first column is text and whose other columns are numbers.

    Example:
        >>> print(markdown_table(["name", "s"], [["a", 1.5]]))
        | name | s |
        | :--- | ---: |
        | a | 1.50 |
    """
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def conditions(*packages: str) -> str:
    """Processor, threads, versions and day, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    extensions = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return (
        f"{_processor()} ({extensions}), {threads} thread{'s' * (threads != 1)}, "
        f"{'processor' if threads == 1 else 'wall-clock'} time, float32, {versions}, "
        f"Python {platform.python_version()}, {datetime.date.today()}"
    )


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    fields = {key: re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in ("model name", "cpu family")}
    name, family = (match.group(1) if match else "unknown" for match in fields.values())
    return f"{name}, family {family}"


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", text).group(1))


def _trim() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
