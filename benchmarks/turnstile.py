"""Training loops that take turns: each runs in a thread of its own and waits for leave before every step."""

from __future__ import annotations

import threading
from collections.abc import Callable

import lightning as L
from measuring import clock
from transformers import TrainerCallback


class Turnstile:
    """Lets a training loop, in a thread of its own, through one step at a time."""

    def __init__(self, loop: Loop) -> None:
        self.error: BaseException | None = None
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()
        self._wait()

    def gate(self) -> None:
        """The loop is at the beginning of a step, and waits."""
        self._arrived.release()
        self._go.acquire()

    def step(self) -> float:
        """Seconds until the loop is at its next gate."""
        start = clock()
        self._go.release()
        self._wait()
        return clock() - start

    def _run(self, loop: Loop) -> None:
        try:
            loop(self)
        except BaseException as error:  # it is raised where the main thread waits
            self.error = error
        finally:
            self._arrived.release()

    def _wait(self) -> None:
        self._arrived.acquire()
        if self.error is not None:
            raise self.error


class LightningGate(L.Callback):
    def __init__(self, turnstile: Turnstile, phases: list[dict[str, float]]) -> None:
        self.turnstile, self.phases = turnstile, phases

    def on_train_batch_start(self, trainer, *args):
        seconds = {k.rpartition("/")[2]: float(v) for k, v in trainer.callback_metrics.items() if "/seconds/" in k}
        self.phases.append(seconds)
        self.turnstile.gate()


class TrlGate(TrainerCallback):
    def __init__(self, turnstile: Turnstile) -> None:
        self.turnstile = turnstile

    def on_step_begin(self, args, state, control, **kwargs):
        self.turnstile.gate()


Loop = Callable[[Turnstile], None]
"""A training loop that calls `gate`, through a callback, at the beginning of every step."""
