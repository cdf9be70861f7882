"""A connection to an MCP server, for code that does not await."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late  # another class than the builtin one, before Python 3.11
from typing import Any

from veto_pl.core.event_loop import begun, event_loop
from veto_pl.environments.tool_replies import problem

GRACE = 5.0
"""Seconds that an answer may be late, beside the time limit that the client itself keeps."""


class NoConnectionError(Exception):
    """The server has gone."""


class Connection:
    """A client of a server, opened and closed by one task, as the library wants it.

    Args:
        target: what a client of `mcp` connects to.
        timeout: seconds that the start, and a call, may take.

    Raises:
        Exception: the server does not answer; of the kind that the library raises, or `TimeoutError`.
    """

    def __init__(self, target: Any, timeout: float) -> None:
        self.timeout, self._over = timeout, asyncio.Event()
        opened: Future[Any] = Future()
        self._held = begun(self._hold(target, opened))
        try:
            self._client = opened.result(timeout)
        except Late as error:
            self._held.cancel()
            raise TimeoutError(f"no answer within {timeout:g} s") from error

    async def _hold(self, target: Any, opened: Future[Any]) -> None:
        from mcp import Client

        try:
            async with Client(target, read_timeout_seconds=self.timeout) as client:
                opened.set_result(client)
                await self._over.wait()
        except BaseException as error:  # of a server that has gone meanwhile, its calls tell
            if not opened.done():
                opened.set_exception(_first(error))

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Return the JSON schemas of all tools, as chat templates take them."""
        listed: list[Any] = []
        cursor, more = None, True
        while more:
            page = self._result(self._client.list_tools(cursor=cursor))
            listed, cursor = [*listed, *page.tools], page.next_cursor
            more = cursor is not None
        return tuple(
            {
                "type": "function",
                "function": {"name": one.name, "description": one.description or "", "parameters": one.input_schema},
            }
            for one in listed
        )

    def call(self, call: Mapping[str, Any]) -> tuple[str, bool]:
        """Return what the server says to a call, and whether it has failed; raise `NoConnectionError` if it is gone."""
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        try:
            answer = self._result(self._client.call_tool(str(call["name"]), dict(call["arguments"])))
        except MCPError as error:
            if error.error.code == CONNECTION_CLOSED:
                raise NoConnectionError from error
            return problem(error), True
        except Exception as error:  # such as arguments that no JSON can hold
            return problem(error), True
        return "\n".join(getattr(part, "text", f"[{part.type}]") for part in answer.content), bool(answer.is_error)

    def close(self) -> None:
        """Close the connection, and end a server that was started for it."""
        event_loop().call_soon_threadsafe(self._over.set)
        self._held.result(self.timeout + GRACE)

    def _result(self, awaited: Coroutine[Any, Any, Any]) -> Any:
        answer = begun(awaited)
        try:
            return answer.result(self.timeout + GRACE)
        except Late as error:
            answer.cancel()
            raise TimeoutError(f"no answer within {self.timeout:g} s") from error


def _first(error: BaseException) -> BaseException:
    """Return the first of the errors that a group of tasks has raised together."""
    while inner := getattr(error, "exceptions", ()):
        error = inner[0]
    return error
