"""A request has one deadline, whatever the server does, and leaves nothing behind."""

import socket
import threading
import time
from contextlib import contextmanager
from itertools import count

import pytest

from veto_pl.exceptions import ConfigurationError
from veto_pl.servers.endpoint import Endpoint, NoAnswerError

PAUSE = 0.02
AT_MOST = 60.0
"""Seconds until a server gives in by itself, which ends the request for another reason than the deadline."""
OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers one connection with pieces, a pause behind each."""

    def __init__(self, pieces, pause):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pieces, self.pause = pieces, pause
        self.left = threading.Event()  # the client has gone
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        connection, _ = self.listener.accept()
        deadline = time.monotonic() + AT_MOST
        with connection:
            connection.settimeout(AT_MOST)
            try:
                connection.recv(2**16)
                for piece in self.pieces:
                    if time.monotonic() > deadline:
                        return
                    connection.sendall(piece)
                    time.sleep(self.pause)
                while connection.recv(2**16):
                    pass
                self.left.set()
            except ConnectionError:
                self.left.set()


@contextmanager
def serving(pieces, pause=PAUSE):
    server = Server(pieces, pause)
    try:
        yield server
    finally:
        server.listener.close()


def endpoint(address, **settings):
    return Endpoint(address, None, **({"timeout": 0.5, "retries": 0} | settings))


def dripping(head, drop=b"x"):
    yield head
    for _ in count():
        yield drop


SERVERS = {
    "nothing": [],
    "a byte of the status line": dripping(b"HTTP/1.1 200 "),
    "a byte of a header line": dripping(OK + b"X-Long: "),
    "header lines": (OK + b"".join(b"X-%d: y\r\n" % i for i in range(20)), *[b"X-More: y\r\n"] * 50, *[b""] * 10_000),
    "100 Continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue with headers": dripping(b"", b"HTTP/1.1 100 Continue\r\nX-A: b\r\n\r\n"),
    "a byte of a body of known length": dripping(OK + b"Content-Length: 1000000\r\n\r\n"),
    "a byte of a body without a length": dripping(OK + b"\r\n"),
    "a chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a byte of a chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"),
    "a byte of the length of a chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "a refusal": dripping(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 1000000\r\n\r\n"),
    "trouble": dripping(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
}


def given_up(server, address, **settings):
    """Asserts that the request ends for the deadline alone, and that the connection is closed."""
    with pytest.raises(NoAnswerError, match=r"^no answer in time$"):
        endpoint(address, **settings).complete({})
    assert server.left.wait(AT_MOST / 2), "the connection is still open"


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_never_comes_to_an_end_is_given_up(name):
    with serving(SERVERS[name]) as server:
        given_up(server, f"http://127.0.0.1:{server.port}/v1")


def test_a_server_that_says_continue_as_fast_as_it_can_is_given_up():
    with serving(dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), pause=0.0) as server:
        given_up(server, f"http://127.0.0.1:{server.port}/v1")


def test_a_server_that_does_not_read_is_given_up():
    """The request is larger than what is on its way at once."""
    with serving(dripping(b"", b"")) as server, pytest.raises(NoAnswerError, match=r"^no answer in time$"):
        endpoint(f"http://127.0.0.1:{server.port}/v1").complete({"text": "x" * 2**25})


def test_a_handshake_that_never_ends_is_given_up():
    """A record of TLS, a byte at a time."""
    with serving(dripping(b"\x16\x03\x03\x3f\xff", b"\x02")) as server:
        given_up(server, f"https://127.0.0.1:{server.port}/v1")


def test_a_proxy_that_never_connects_is_given_up(monkeypatch):
    with serving(dripping(b"HTTP/1.1 200 ")) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.port}")
        given_up(server, "https://judge.invalid/v1")


def test_a_name_that_is_not_found_in_time_is_given_up_and_not_connected_to(monkeypatch):
    found, find = threading.Event(), socket.getaddrinfo

    def slowly(*arguments, **named):
        found.wait(AT_MOST)
        return find(*arguments, **named)

    with serving([OK]) as server:
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        with pytest.raises(NoAnswerError, match=r"^no answer in time$"):
            endpoint(f"http://127.0.0.1:{server.port}/v1").complete({})
        found.set()
        assert server.left.wait(AT_MOST / 2)


def test_a_request_that_is_given_up_leaves_no_thread():
    with serving(dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")) as server:
        before = {*threading.enumerate()}
        given_up(server, f"http://127.0.0.1:{server.port}/v1")
        for thread in {*threading.enumerate()} - before:
            thread.join(AT_MOST / 2)
        assert {*threading.enumerate()} <= before


def test_each_attempt_has_its_own_time():
    """The first hangs for all of its time; the second is answered in half of it."""
    reply = b'{"choices": []}'
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        first, _ = listener.accept()
        second, _ = listener.accept()
        with first, second:
            second.recv(2**16)
            time.sleep(0.5)
            second.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(reply) + reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    assert endpoint(address, timeout=1.0, retries=1).complete({}) == {"choices": []}
    thread.join()
    listener.close()


@pytest.mark.parametrize("seconds", [1e300, 1e12])
def test_a_time_beyond_all_measure_is_a_long_one(seconds):
    refusal = serving([b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone"])
    refused = pytest.raises(ConfigurationError, match="refused with status 404: none")
    with refusal as server, refused:
        endpoint(f"http://127.0.0.1:{server.port}/v1", timeout=seconds).complete({})
