"""No proxy stands between a test and its own server, and no attempt waits for the next."""

import anyio
import pytest


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that a client would have waited between its attempts."""
    seconds = []

    async def sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return seconds
