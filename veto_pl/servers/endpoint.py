"""Requests to an OpenAI-compatible server, by the `openai` client."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from veto_pl.exceptions import ConfigurationError, VetoError

MAX_REPLY_BYTES = 2**22
"""Bytes of a reply that are read, unless the caller expects more."""
_MAX_SECONDS = 1e6
"""Seconds of a request; an event loop cannot wait for much longer."""


Request = dict[str, Any]
Reply = dict[str, Any]


class NoAnswerError(VetoError):
    """A server that was asked has not answered; the message is the reason, short enough to be counted by."""


class _Loop(asyncio.SelectorEventLoop):
    """Knows its connections: one that is given up in the handshake of TLS is closed by nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[asyncio.BaseTransport] = []

    async def create_connection(self, *given: Any, **settings: Any) -> Any:
        made = await super().create_connection(*given, **settings)
        self._made.append(made[0])
        return made

    async def abort(self) -> None:
        """Close the connections that are still open."""
        for transport in self._made:
            cast(asyncio.Transport, transport).abort()
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked.

    Args:
        base_url: what stands before `/chat/completions`, such as `http://localhost:8000/v1`.
        api_key_variable: the environment variable that holds the key, or None for no key.
        timeout: seconds of one request, from the search for the host to the last byte of the reply; each attempt has
            its own.
        retries: further attempts after a failure that may pass: no connection, no answer in time, a reply that is no
            JSON, and the statuses 408, 409, 429 and 5xx. The client waits half a second before the first, and longer
            before each further one or where the server asks for it.
        role: what is asked there, for messages.
        largest_reply: bytes of a reply that are read.

    Raises:
        ConfigurationError: a setting cannot work.
    """

    base_url: str
    api_key_variable: str | None
    timeout: float
    retries: int
    role: str = "judge"
    largest_reply: int = MAX_REPLY_BYTES

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"`base_url` expected an address such as http://localhost:8000/v1, got {parts.path!r}."
            )
        if parts.username or parts.password or parts.query:
            raise ConfigurationError(
                "`base_url` expected an address without a password or a query. Put the key into an environment "
                "variable and name it in `api_key_variable`."
            )

    def complete(self, body: Request) -> Reply:
        """Return the chat completion of a request.

        Raises:
            NoAnswerError: every attempt failed.
            ConfigurationError: the server refuses this request and would refuse the next, or the key is missing.
        """
        (reply,) = self.ask_all("/chat/completions", [body])
        if isinstance(reply, NoAnswerError):
            raise reply
        return reply

    def ask_all(self, path: str, bodies: Sequence[Request], concurrency: int = 1) -> list[Reply | NoAnswerError]:
        """Return the replies to requests in their order, or why there is none.

        Args:
            path: behind `base_url`.
            bodies: of the requests.
            concurrency: requests that are under way at a time.

        Raises:
            ConfigurationError: the server refuses a request and would refuse it again, or the key is missing.
        """
        key = self._key()
        with ThreadPoolExecutor(1) as pool:  # a thread of its own, for the caller's may have an event loop already
            return pool.submit(self._run, path, bodies, concurrency, key).result()

    def _run(
        self, path: str, bodies: Sequence[Request], concurrency: int, key: str | None
    ) -> list[Reply | NoAnswerError]:
        loop = _Loop()
        try:
            return loop.run_until_complete(self._exchange(path, bodies, concurrency, key))
        finally:
            loop.run_until_complete(loop.abort())
            loop.close()  # unlike `asyncio.run`, this does not wait for the search for a host

    async def _exchange(
        self, path: str, bodies: Sequence[Request], concurrency: int, key: str | None
    ) -> list[Reply | NoAnswerError]:
        import openai

        from veto_pl.servers.bounded_client import BoundedClient

        http = BoundedClient(key, min(self.timeout, _MAX_SECONDS), self.largest_reply)
        client = openai.AsyncOpenAI(
            api_key="-", base_url=self.base_url, max_retries=self.retries, timeout=None, http_client=http
        )
        places = asyncio.Semaphore(concurrency)

        async def one(body: Request) -> Reply | NoAnswerError:
            async with places:
                return await self._reply(client, path, body, key)

        async with client:
            return list(await asyncio.gather(*map(one, bodies)))

    async def _reply(self, client: Any, path: str, body: Request, key: str | None) -> Reply | NoAnswerError:
        import openai

        from veto_pl.servers.bounded_client import NotJsonError

        try:
            reply = await client.post(path, body=body, cast_to=object)
        except openai.APITimeoutError:
            return NoAnswerError("no answer in time")
        except openai.APIConnectionError as error:
            return NoAnswerError("no JSON" if isinstance(error.__cause__, NotJsonError) else "no connection")
        except openai.APIStatusError as error:
            refusal = self._refusal(error.status_code, error.response.text, key)
            if isinstance(refusal, NoAnswerError):
                return refusal
            raise refusal from None
        return reply if isinstance(reply, dict) else {}

    def _key(self) -> str | None:
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigurationError(
                f"`api_key_variable` names {self.api_key_variable}, which is not set to a key. Export it, or set "
                "`api_key_variable: null` for a server that needs none."
            )
        return key

    def _refusal(self, status: int, text: str, key: str | None) -> VetoError:
        """Return the error that a status stands for, with the server's message, from which the key is removed."""
        if status in (408, 409, 429) or status >= 500:
            return NoAnswerError(f"status {status}")
        explanation = " ".join(_without(key, text[:2000]).split())[:300]
        return ConfigurationError(
            f"The {self.role} at {self.base_url} refused with status {status}: {explanation or 'no reason given'}. "
            "Check `base_url`, `model` and the key that `api_key_variable` names."
        )


def _without(key: str | None, text: str) -> str:
    """Return the text with the key replaced by `[key]`, also where JSON has escaped it or its slashes."""
    quoted = json.dumps(key or "")[1:-1]
    for form in filter(None, (quoted.replace("/", "\\/"), (key or "").replace("/", "\\/"), quoted, key)):
        text = text.replace(form, "[key]")
    return text
