"""The HTTP client of `openai` with what it lacks: an end to every attempt, in time and in length.

Its time-outs count for each read of a socket, so a server that sends a byte now and then keeps it waiting for ever.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai


class NotJsonError(httpx2.DecodingError):
    """A reply that claims success and is no JSON; the client tries again, as after a broken connection."""


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """Sends a request and reads the whole reply within a deadline; follows no redirect, which would take the key along.

    Args:
        key: sent as the bearer's, whatever keys the environment holds for other servers; None sends none.
        seconds: from the search for the host to the last byte of the reply.
        largest_reply: bytes of a reply that are read.
    """

    def __init__(self, key: str | None, seconds: float, largest_reply: int) -> None:
        super().__init__(follow_redirects=False, timeout=None)
        self._authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._seconds, self._largest = seconds, largest_reply

    async def send(self, request: httpx2.Request, **settings: Any) -> httpx2.Response:
        """Return the reply with its body; raise the client's own errors if it comes too late or is no JSON."""
        for name in ("Authorization", "OpenAI-Organization", "OpenAI-Project"):
            request.headers.pop(name, None)
        request.headers.update(self._authorization)
        try:
            return await asyncio.wait_for(self._read(request, settings | {"stream": True}), self._seconds)
        except asyncio.TimeoutError as error:
            raise httpx2.ReadTimeout("no answer in time", request=request) from error

    async def _read(self, request: httpx2.Request, settings: dict[str, Any]) -> httpx2.Response:
        reply = await super().send(request, **settings)
        body = bytearray()
        try:
            async for piece in reply.aiter_bytes():
                body += piece
                if len(body) > self._largest:
                    break
        finally:
            await reply.aclose()
        if reply.is_success:
            try:
                json.loads(body)
            except (ValueError, RecursionError) as error:
                raise NotJsonError("no JSON", request=request) from error
        headers = [(name, text) for name, text in reply.headers.items() if name in ("retry-after", "retry-after-ms")]
        headers.append(("content-type", "application/json"))
        return httpx2.Response(reply.status_code, headers=headers, content=bytes(body), request=request)
