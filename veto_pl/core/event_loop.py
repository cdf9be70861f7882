"""What has to be awaited, for code that does not await: one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from functools import cache
from typing import TypeVar

T = TypeVar("T")


def settled(value: T | Awaitable[T]) -> T:
    """Return a value, or wait for what has to be awaited; never from within the event loop itself."""
    return begun(value).result() if inspect.isawaitable(value) else value


def begun(value: Awaitable[T]) -> Future[T]:
    """Begin to await a value in the event loop of this process, and return what will become of it."""
    return asyncio.run_coroutine_threadsafe(_awaited(value), event_loop())


async def _awaited(value: Awaitable[T]) -> T:
    return await value


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, whose threads do not keep the process from ending."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="veto_pl event loop").start()
    return loop
