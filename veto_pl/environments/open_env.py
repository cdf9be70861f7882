"""Environments behind servers of OpenEnv."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from veto_pl.core.bounds import Positive
from veto_pl.core.extras import require_extra
from veto_pl.environments.tool_replies import CallFailedError, problem
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Environment, Episode, Example, Message, Reply

LARGEST_MESSAGE = 2**24
"""Bytes of a message of a server."""


@dataclass(frozen=True)
class OpenEnv(Environment):
    """An environment behind a server of OpenEnv, spoken to by its WebSocket; that package is not needed.

    Each episode is a session of its own, so that the server has to allow as many (`max_concurrent_envs`) as are played
    together. A turn becomes an action with the text in one of its fields, and the agent reads one field of the
    observation, or all of it as JSON. What the server refuses is a failed turn, and the agent reads why; where it has
    gone, the episode ends. The reward is the sum of those of all steps.

    Args:
        url: of the server, such as `http://localhost:8000`.
        action: the field of an action that holds the turn, such as `message` or `code`.
        observation: the field of an observation that the agent reads; None for all fields.
        more: further fields of every action.
        row_fields: fields of the row that the server's `reset` takes, beside the seed.
        timeout: seconds that a message may take; less than `Played.timeout`.

    Raises:
        ConfigurationError: `websockets` is not installed, or `url` is none of HTTP.

    References:
        OpenEnv 0.10 (its messages)
    """

    url: str
    action: str
    observation: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    row_fields: tuple[str, ...] = ()
    timeout: Positive = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extra("websockets", extra="openenv", needed_by="`OpenEnv`")
        if not self.url.startswith(("http://", "https://", "ws://", "wss://")):
            raise ConfigurationError(
                f"`OpenEnv.url`: given `{self.url}`, expected that of a server, such as `http://localhost:8000`."
            )

    @classmethod
    def examples(cls) -> tuple[OpenEnv, ...]:
        return ()  # it needs a server

    def begin(self, example: Example, seed: int) -> Episode:
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        address = f"ws{self.url.removeprefix('http').removeprefix('ws').rstrip('/')}/ws"
        proxy: dict[str, Any] = {"proxy": None} if address.startswith("ws://") else {}
        given = {name: example.row[name] for name in self.row_fields if name in example.row}
        to_server = connect(address, open_timeout=self.timeout, close_timeout=1, max_size=LARGEST_MESSAGE, **proxy)
        try:
            with ExitStack() as opened:
                socket = opened.enter_context(to_server)
                session = _Session(self, socket, {"seed": seed % 2**31, **given})
                session.opened = opened.pop_all()
                return session
        except ConnectionClosed as error:
            raise ConfigurationError(
                f"The server of `OpenEnv` at {self.url} ends a session as it begins: {error}. It has to allow as many "
                "sessions (`max_concurrent_envs`) as there are episodes of a batch, on all ranks together."
            ) from error


class _Session(Episode):
    """An episode behind a server.

    Args:
        settings: how its messages are read and written.
        socket: to the server.
        given: what `reset` gets.

    Attributes:
        opened: what is closed with the episode.
    """

    def __init__(self, settings: OpenEnv, socket: Any, given: Mapping[str, Any]) -> None:
        self.settings, self.socket, self.total, self.opened = settings, socket, 0.0, ExitStack()
        self._opening, _ = self._asked("reset", given)

    @property
    def opening(self) -> tuple[Message, ...]:
        return self._opening

    def reply(self, turn: Message) -> Reply:
        try:
            action = {**self.settings.more, self.settings.action: str(turn.get("content"))}
            said, done = self._asked("step", action)
        except CallFailedError as error:
            return Reply(({"role": "user", "content": problem(error)},), failed=True)
        return Reply(said, done=done)

    def reward(self) -> float:
        return self.total

    def close(self) -> None:
        self.opened.close()

    def _asked(self, kind: str, data: Mapping[str, Any]) -> tuple[tuple[Message, ...], bool]:
        """Return what the agent reads of a message's answer, and whether the episode is over; count its reward."""
        self.socket.send(json.dumps({"type": kind, "data": data}))
        answer = json.loads(self.socket.recv(timeout=self.settings.timeout))
        told = answer["data"]
        if answer["type"] == "error":
            raise CallFailedError(f"Error: {told.get('message')}")
        self.total += float(told.get("reward") or 0.0)
        seen, name = told.get("observation") or {}, self.settings.observation
        if name is not None and name not in seen:
            raise ConfigurationError(
                f"`OpenEnv.observation`: given `{name}`, expected one of {', '.join(map(repr, seen))}. Correct it."
            )
        text = seen if name is None else seen[name]
        content = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        return ({"role": "user", "content": content},), bool(told.get("done"))
