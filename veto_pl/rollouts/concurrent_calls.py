"""Calls of the code of others, several at a time, each with a time limit; answers come in the order of the calls."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from veto_pl.core.event_loop import begun

T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came of a call.

    Args:
        value: what it returned; None where it has failed.
        problem: why it has failed; empty where it has not.
        late: whether it has failed because its time was up.
    """

    value: T | None = None
    problem: str = ""
    late: bool = False


@dataclass
class _Call:
    """A call on its way.

    Args:
        run: the call.
        slots: as many may run at a time.
        answer: what has come of it.
        began: when it began, None before.
        waiting: what it waits for, where it is awaited.
    """

    run: Callable[[], Any]
    slots: threading.Semaphore
    answer: Future[Any] = field(default_factory=Future)
    began: float | None = None
    waiting: Future[Any] | None = None

    def __call__(self) -> None:
        self.slots.acquire()
        self.began = time.monotonic()
        try:
            value = self.run()
            if inspect.isawaitable(value):
                self.waiting = begun(value)
                value = self.waiting.result()
            self._settle(Answer(value))
        except BaseException as error:  # whatever it is: a tool may call `sys.exit`
            self._settle(Answer(problem=f"raised {type(error).__name__}: {str(error)[:300]}"))

    def _settle(self, answer: Answer[Any]) -> None:
        """Give the answer, unless the time was up before."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(answer)
            self.slots.release()

    def left(self, timeout: float) -> float:
        """Return how many of so many seconds are left."""
        return timeout if self.began is None else self.began + timeout - time.monotonic()

    def is_over(self, timeout: float) -> bool:
        """Return whether there is an answer; a call whose time is up gets one that says so."""
        if self.left(timeout) <= 0 and self.answer.cancel():
            self.slots.release()  # the thread may hang for ever
            if self.waiting is not None:
                self.waiting.cancel()
        return self.answer.done()

    def result(self, timeout: float) -> Answer[Any]:
        """Return the answer of a call that is over."""
        late = Answer[Any](problem=f"gave no answer within {timeout:g} s", late=True)
        return late if self.answer.cancelled() else cast("Answer[Any]", self.answer.result())


def answers_of(calls: Sequence[Callable[[], T | Awaitable[T]]], *, timeout: float, at_once: int) -> list[Answer[T]]:
    """Make calls, several at a time, and return what came of each, in their order.

    Every call has a thread of its own, which hinders nobody when it hangs; what is to be awaited is awaited in one
    event loop, which lives as long as the process.

    Args:
        calls: functions without arguments; what they return may have to be awaited.
        timeout: seconds that each may take, from when it begins.
        at_once: as many run at a time.
    """
    slots = threading.Semaphore(at_once)
    made = [_Call(call, slots) for call in calls]
    for one in made:
        threading.Thread(target=one, daemon=True, name="veto_pl call").start()
    going = made
    while going := [one for one in going if not one.is_over(timeout)]:
        wait([one.answer for one in going], min(one.left(timeout) for one in going), FIRST_COMPLETED)
    return [one.result(timeout) for one in made]
