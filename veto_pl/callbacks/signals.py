"""Signals that end a run, kept until all ranks stand where its state can be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from veto_pl.core.transfer import sent

_HANG_UP = getattr(signal, "SIGHUP", None)
"""Not every system has it."""


class Signals:
    """Lets Lightning's own handlers act between two micro-batches, on all ranks at once.

    Lightning saves for a requeue by SLURM in the handler itself, so possibly in the middle of an update, and tells the
    other ranks about SIGTERM from within the handler, so possibly inside another collective. Here the handlers only
    take a note. SIGHUP, which a closed terminal sends, does what SIGTERM does, unless it is ignored, as under `nohup`.
    """

    def __init__(self) -> None:
        self._requeue: Callable[[Any, Any], None] | None = None
        self._asked = {"requeue": 0, "termination": 0}
        self._requeue_agreed = False
        self._hung_up: int | None = None
        self._process = os.getpid()

    def install(self, trainer: L.Trainer) -> None:
        """Replace the actions of Lightning's handlers by ones that only record the signal, before it registers them."""
        self._process = os.getpid()
        self._hung_up = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and _HANG_UP is not None and signal.getsignal(_HANG_UP) is signal.SIG_DFL:
            signal.signal(_HANG_UP, self._hang_up)
        connector = trainer._signal_connector
        environment = trainer._accelerator_connector.cluster_environment
        if self._requeue is None and isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = connector._slurm_sigusr_handler_fn
            connector._slurm_sigusr_handler_fn = self._record_requeue  # type: ignore[method-assign]
        if trainer.world_size > 1:
            launcher = trainer.strategy.launcher

            def record(signum: int, _: Any) -> None:
                if launcher is not None and not self._asked["termination"]:
                    launcher.kill(signum)
                self._asked["termination"] = signum

            connector._sigterm_notifier_fn = record  # type: ignore[method-assign]
            # Lightning's own question before every batch makes the host wait, and has no news after `agree`.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _say_nothing  # type: ignore[method-assign]

    def remove(self, trainer: L.Trainer) -> None:
        """Restore the default handler of SIGHUP; Lightning restores those of all other signals."""
        if _HANG_UP is not None and signal.getsignal(_HANG_UP) == self._hang_up:
            signal.signal(_HANG_UP, signal.SIG_DFL)
            trainer._signal_connector._original_handlers.pop(_HANG_UP, None)

    @property
    def ended_by(self) -> signal.Signals:
        """The signal that ended the run."""
        return signal.SIGTERM if self._hung_up is None else signal.Signals(self._hung_up)

    def _hang_up(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a worker, which is told by its parent
        self._hung_up = signum
        act = signal.getsignal(signal.SIGTERM)
        if callable(act):
            act(signum, frame)
        else:  # nothing is trained yet
            signal.signal(signum, signal.SIG_DFL)
            os.kill(self._process, signum)

    def agree(self, trainer: L.Trainer, *, late: bool = False) -> bool:
        """Ask all ranks at once what any of them was told, and end the run after this batch if that is to end.

        Collective: call it on every rank. The host waits for the device once.

        Args:
            trainer: runs the fit.
            late: anything else that one rank may decide for all.

        Returns:
            Whether `late` is true on any rank.
        """
        if trainer.world_size == 1:  # Lightning's handler has ended the run already
            return late
        told = [bool(self._asked["termination"]), bool(self._asked["requeue"]), late]
        votes = sent(torch.tensor(told, dtype=torch.float32), trainer.strategy.root_device)
        ends, requeues, late = (count > 0 for count in trainer.strategy.reduce(votes, reduce_op="sum").tolist())
        if ends:
            trainer._signal_connector.received_sigterm = True  # Lightning's loops raise when they see it
        self._requeue_agreed |= requeues
        return late

    def act_on_requeue(self, trainer: L.Trainer) -> None:
        """Save and requeue the job if SLURM has asked for it: any rank, as far as `agree` knows."""
        wanted = self._asked["requeue"] if trainer.world_size == 1 else self._requeue_agreed
        if self._requeue is not None and wanted:
            self._asked["requeue"], self._requeue_agreed = 0, False
            self._requeue(signal.SIGUSR1, None)

    def _record_requeue(self, signum: int, _: Any) -> None:
        self._asked["requeue"] = signum


def _say_nothing() -> None:
    """Stand in for a question that is answered already."""
