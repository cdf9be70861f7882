"""A chat completion from an OpenAI-compatible server, by the `openai` client."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from veto_pl.core.extras import require_extra
from veto_pl.exceptions import ConfigurationError
from veto_pl.judging.preferences import NoVerdictError

_MAX_SECONDS = 1e6
"""Seconds of a request; an event loop cannot wait for much longer."""


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
    """Where a judge is asked.

    Args:
        base_url: what stands before `/chat/completions`, such as `http://localhost:8000/v1`.
        api_key_variable: the environment variable that holds the key, or None for no key.
        timeout: seconds of one request, from the search for the host to the last byte of the reply; each attempt has
            its own.
        retries: further attempts after a failure that may pass: no connection, no answer in time, a reply that is no
            JSON, and the statuses 408, 409, 429 and 5xx. The client waits half a second before the first, and longer
            before each further one or where the server asks for it.

    Raises:
        ConfigurationError: a setting cannot work, or the client is not installed.
    """

    base_url: str
    api_key_variable: str | None
    timeout: float
    retries: int

    def __post_init__(self) -> None:
        require_extra("openai", extra="judge", needed_by="`ChatJudge`")
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

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request.

        Raises:
            NoVerdictError: every attempt failed.
            ConfigurationError: the server refuses this request and would refuse the next, or the key is missing.
        """
        key = self._key()
        with ThreadPoolExecutor(1) as pool:  # a thread of its own, for the caller's may have an event loop already
            return pool.submit(self._complete, body, key).result()

    def _complete(self, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        loop = _Loop()
        try:
            return loop.run_until_complete(self._exchange(body, key))
        finally:
            loop.run_until_complete(loop.abort())
            loop.close()  # unlike `asyncio.run`, this does not wait for the search for a host

    async def _exchange(self, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        import openai

        from veto_pl.judging.bounded_client import BoundedClient, NotJsonError

        http = BoundedClient(key, min(self.timeout, _MAX_SECONDS))
        address, retries = self.base_url, self.retries
        async with openai.AsyncOpenAI(
            api_key="-", base_url=address, max_retries=retries, timeout=None, http_client=http
        ) as client:
            try:
                reply = await client.post("/chat/completions", body=body, cast_to=object)
            except openai.APITimeoutError:
                raise NoVerdictError("no answer in time") from None
            except openai.APIConnectionError as error:
                raise NoVerdictError(
                    "no JSON" if isinstance(error.__cause__, NotJsonError) else "no connection"
                ) from None
            except openai.APIStatusError as error:
                raise self._refusal(error.status_code, error.response.text, key) from None
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

    def _refusal(self, status: int, text: str, key: str | None) -> Exception:
        """Return the error that a status stands for, with the server's message, from which the key is removed."""
        if status in (408, 409, 429) or status >= 500:
            return NoVerdictError(f"status {status}")
        explanation = " ".join(_without(key, text[:2000]).split())[:300]
        return ConfigurationError(
            f"The judge at {self.base_url} refused with status {status}: {explanation or 'no reason given'}. Check "
            "`base_url`, `model` and the key that `api_key_variable` names."
        )


def _without(key: str | None, text: str) -> str:
    """Return the text with the key replaced by `[key]`, also where JSON has escaped it or its slashes."""
    quoted = json.dumps(key or "")[1:-1]
    for form in filter(None, (quoted.replace("/", "\\/"), (key or "").replace("/", "\\/"), quoted, key)):
        text = text.replace(form, "[key]")
    return text
