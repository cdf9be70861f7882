"""Wall time of a step by phase: rollout, scoring, update, data, validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Seconds per phase since the last reading.

    On an accelerator the phases are those of the host: kernels still running are counted where the host waits for them.
    """

    def __init__(self) -> None:
        self.phase = "starting"
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """End the present phase and begin another."""
        now = time.perf_counter()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self._since = phase, now

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the time of a block as one phase, then go back to the phase before."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def read(self, tokens: float) -> dict[str, float]:
        """Return the seconds of each phase since the last reading, which are reset, and the tokens per second.

        Args:
            tokens: written since the last reading.
        """
        self.enter(self.phase)
        total = sum(self._seconds.values())
        reading = {f"seconds/{name}": seconds for name, seconds in self._seconds.items() if name != "starting"}
        reading["tokens_per_second"] = tokens / total if total else 0.0
        self._seconds = {}
        return reading
