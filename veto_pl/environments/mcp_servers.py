"""Tools of MCP servers."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from veto_pl.core.bounds import Positive
from veto_pl.core.extras import require_extra
from veto_pl.data.functions import made_at
from veto_pl.environments.mcp_connection import Connection, NoConnectionError
from veto_pl.environments.tool_replies import calls_in, problem, told
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Environment, Episode, Example, Message, Reply

_DIES_WITH_PARENT = "import ctypes,os,sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
"""Runs a program that the kernel ends where the run is killed, whether the program looks at its input or not."""


@dataclass(frozen=True)
class Mcp(Environment):
    """The tools of a server of the Model Context Protocol; the task judges the last turn.

    One of three is given: `server`, in this process; `command`, a program that talks by its standard input and output;
    or `url`, where one already runs. Every episode has a connection of its own. A program is started for each episode,
    and ended with it. It ends with the run too, however that ends.

    A turn without calls ends the episode. A call that the server refuses or that fails there is a failed turn, and the
    agent reads why, as it does of one that takes too long. Where the server has gone, the episode ends as well.

    Args:
        server: a server, or a function without arguments that makes one, as `module.name`. Modules of the current
            folder are found as well. Of one server, all episodes share what it remembers.
        command: the program and its arguments.
        pass_on: names of environment variables that the program gets, beside those that every program needs.
        url: of a server that speaks streamable HTTP, such as `http://localhost:8000/mcp`.
        timeout: seconds that the start of a server, and a call, may take; less than `Played.timeout`.

    Raises:
        ConfigurationError: `mcp` is not installed, there is no such server, or it does not start.
    """

    server: str | None = None
    command: tuple[str, ...] = ()
    pass_on: tuple[str, ...] = ()
    url: str | None = None
    timeout: Positive = 30.0

    gives_rewards = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extra("mcp", extra="mcp", needed_by="`Mcp`")
        given = [name for name in ("server", "command", "url") if getattr(self, name)]
        if len(given) != 1:
            told = " and ".join(f"`{name}`" for name in given) or "none"
            raise ConfigurationError(f"`Mcp` expected one of `server`, `command` and `url`, got {told}. Give one.")
        if self.server is not None:
            made_at("Mcp.server", self.server)

    @classmethod
    def examples(cls) -> tuple[Mcp, ...]:
        from importlib.util import find_spec

        return () if find_spec("mcp") is None else (cls("veto_pl.testing.one_liners.calculating_server"),)

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The schemas of the server's tools; asked once for each server."""
        return _schemas(self)

    def begin(self, example: Example, seed: int) -> Episode:
        return _Session(self.connect())

    def connect(self) -> Connection:
        """Return a connection to the server; raise `ConfigurationError` where there is none."""
        with tempfile.TemporaryFile("w+") as errors:
            try:
                return Connection(self._target(errors), self.timeout)
            except Exception as error:
                os.lseek(errors.fileno(), 0, os.SEEK_SET)
                said = errors.read()[-500:].strip()
                raise ConfigurationError(
                    f"`Mcp` cannot talk to `{self.server or self.url or ' '.join(self.command)}`. Correct it, or raise "
                    f"`Mcp.timeout` ({self.timeout:g} s). {problem(error)}\n{said}".rstrip()
                ) from error

    def _target(self, errors: Any) -> Any:
        """Return what a client of `mcp` connects to; a program writes its errors into a file."""
        from mcp import StdioServerParameters, stdio_client

        if self.server is not None:
            return made_at("Mcp.server", self.server)
        if self.url is not None:
            return self.url
        command = ["-I", "-S", "-c", _DIES_WITH_PARENT, *self.command]
        passed = {name: os.environ[name] for name in self.pass_on if name in os.environ}
        return stdio_client(StdioServerParameters(command=sys.executable, args=command, env=passed), errlog=errors)


class _Session(Episode):
    """An episode of calls.

    Args:
        connection: to the server; it is closed with the episode.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def reply(self, turn: Message) -> Reply:
        try:
            return told([(call["name"], *self.connection.call(call)) for call in calls_in(turn)], turn)
        except NoConnectionError:
            return Reply(done=True, failed=True)

    def close(self) -> None:
        self.connection.close()


@lru_cache(maxsize=16)
def _schemas(settings: Mcp) -> tuple[Mapping[str, Any], ...]:
    with _closing(settings.connect()) as connection:
        tools = connection.tools()
    if not tools:
        raise ConfigurationError("`Mcp`: the server has no tool that an agent could call. Give it one.")
    return tools


@contextmanager
def _closing(connection: Connection) -> Iterator[Connection]:
    try:
        yield connection
    finally:
        connection.close()
