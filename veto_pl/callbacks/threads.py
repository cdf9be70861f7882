"""The number of threads that a run computes with on a CPU."""

from __future__ import annotations

import os
import time
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.core.cores import Usage, allowed_cores
from veto_pl.core.mistakes import check_number

LOOK = 0.3
"""Seconds over which the use of the cores is looked at, at least."""
HINT = "`--threads N`, or OMP_NUM_THREADS, sets another number."


class Threads(L.Callback):
    """Lets PyTorch compute with as many threads as cores are free, and says how many these are.

    PyTorch takes one thread per core, also where other processes keep the cores busy or a container may use few of
    them. The threads of one operation then wait for each other, and a small model crawls. A run that is resumed takes
    the number that it began with: sums over other parts round otherwise.

    Nothing is chosen where the environment sets OMP_NUM_THREADS, on another device than a CPU, and for several
    processes, among which Lightning shares the cores. No more threads are taken than PyTorch has by itself.

    Args:
        number: of threads; `auto` looks at the cores.

    Raises:
        ConfigurationError: a number below 1.
    """

    def __init__(self, number: int | Literal["auto"] = "auto") -> None:
        if number != "auto":
            check_number("threads", number, 1)
        self.number = number
        self._began = Usage.now()
        self._before: int | None = None
        self._chosen: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the number, once, and log it."""
        if self._chosen is not None or trainer.world_size > 1 or trainer.strategy.root_device.type != "cpu":
            return
        if self.number != "auto":
            self._set(self.number)
        elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 1:
            self._set(self._look())

    def state_dict(self) -> dict[str, Any]:
        """Return the number, with which a resumed run goes on."""
        return {} if self._chosen is None else {"threads": self._chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the number of the run that is resumed, as far as there are cores, if one was to be chosen."""
        before = state_dict.get("threads")
        if self.number != "auto" or self._chosen is None or before is None:
            return
        number = min(int(before), allowed_cores())
        if number != self._chosen:
            rank_zero_info(f"Computes with {_counted(number)}, as before it was stopped.")
            self._set(number)

    def release(self) -> None:
        """Give back the number that PyTorch had before."""
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = self._chosen = None

    def _set(self, number: int) -> None:
        self._before = torch.get_num_threads() if self._before is None else self._before
        self._chosen = number
        torch.set_num_threads(number)

    def _look(self) -> int:
        """Return the number of cores that are free, at most PyTorch's own number, and log it."""
        time.sleep(max(0.0, self._began.at + LOOK - time.monotonic()))
        cores, others = allowed_cores(), self._began.of_others(Usage.now()) or 0.0
        number = max(1, min(torch.get_num_threads(), round(cores - others)))
        busy = f", for other processes keep {others:.1f} of {cores} cores busy" if number < cores and others else ""
        rank_zero_info(f"Computes with {_counted(number)}{busy}. {HINT}")
        return number


def _counted(number: int) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"
