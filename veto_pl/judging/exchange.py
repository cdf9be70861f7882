"""One HTTP request and its reply within a deadline, whatever the server does.

The time-outs of `urllib`, `requests` and `httpx` count for each read of a socket. A server that sends a byte now and
then, header lines without end or one `100 Continue` after the other keeps all of them waiting for ever.
"""

from __future__ import annotations

import io
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import IO, Any

_LONGEST = 1e6
"""Seconds; sockets and threads cannot wait for much longer."""


@dataclass(frozen=True)
class Reply:
    """What a server has answered.

    Args:
        status: such as 200.
        reason: the words behind it.
        headers: its header lines.
        body: its first bytes; of a refusal that breaks off none.
    """

    status: int
    reason: str
    headers: Message
    body: bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class _Input(io.RawIOBase):
    """What a server sends until the request is over; else a flood would be read on for as long as it comes."""

    def __init__(self, inner: io.RawIOBase, connections: _Connections) -> None:
        self._inner, self._connections = inner, connections

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return 0 if self._connections.over else self._inner.readinto(buffer)

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """The connections of one request, which another thread may end."""

    def __init__(self) -> None:
        super().__init__()
        self.over = False
        self._made: list[HTTPConnection] = []
        self._sockets: list[socket.socket] = []

    def do_open(self, http_class: Callable[..., HTTPConnection], req: Any, **settings: Any) -> HTTPResponse:
        def made(host: str, **more: Any) -> HTTPConnection:
            connection = http_class(host, **more)
            self._made.append(connection)
            connect = connection.connect

            def connected() -> None:
                connect()
                self._sockets.append(connection.sock)  # the connection forgets it once the reply begins
                if self.over:  # the name of the host was found too late
                    self.end()

            connection.connect = connected  # type: ignore[method-assign]
            connection.response_class = self._response  # type: ignore[assignment]
            return connection

        return super().do_open(made, req, **settings)

    def _response(self, *given: Any, **settings: Any) -> HTTPResponse:
        response = HTTPResponse(*given, **settings)
        response.fp = io.BufferedReader(_Input(response.fp.detach(), self))
        return response

    def end(self) -> None:
        """Lets every read and write end at once."""
        self.over = True
        for end in filter(None, [*self._sockets, *(connection.sock for connection in self._made)]):
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(end, socket.SHUT_RDWR)  # below TLS, which would wait for an answer


def exchange(request: urllib.request.Request, seconds: float, longest: int) -> Reply:
    """Sends a request and returns the reply, of whatever status.

    Args:
        request: with an http or https address.
        seconds: from the search for the host to the last byte.
        longest: bytes of the body that are read.

    Raises:
        TimeoutError: the reply is not complete in time.
        OSError: no connection, or a broken one.
        HTTPException: the reply is no HTTP.
    """
    seconds = min(seconds, _LONGEST)
    connections = _Connections()
    outcome: list[Reply | Exception] = []

    def work() -> None:
        try:
            outcome.append(_exchanged(request, connections, seconds, longest))
        except Exception as error:
            outcome.append(error)

    # In a thread of its own, for nothing can interrupt the search for the name of a host.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds)
    if not outcome:
        connections.end()
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _exchanged(request: urllib.request.Request, connections: _Connections, seconds: float, longest: int) -> Reply:
    try:
        with urllib.request.build_opener(_NoRedirects, connections).open(request, timeout=seconds) as reply:
            return Reply(reply.status, reply.reason, reply.headers, reply.read(longest))
    except urllib.error.HTTPError as error:
        with error:
            body = b""
            with suppress(OSError, HTTPException):
                body = error.read(longest)
            return Reply(error.code, error.reason, error.headers, body)
