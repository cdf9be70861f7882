"""A chat completion from an OpenAI-compatible server, asked for until it comes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

from veto_pl.exceptions import ConfigurationError
from veto_pl.judging.exchange import Reply, exchange
from veto_pl.judging.preferences import NoVerdictError

LONGEST_REPLY = 2**22
"""Bytes of a reply that are read."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts."""
_PASSING = {408, 409, 425, 429}


@dataclass(frozen=True)
class _Failure:
    """A failure that may pass.

    Args:
        reason: what failed.
        pause: seconds that the server asked for, or 0.
    """

    reason: str
    pause: float = 0.0


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is asked.

    Args:
        base_url: what stands before `/chat/completions`, such as `http://localhost:8000/v1`.
        api_key_variable: the environment variable that holds the key, or None for no key.
        timeout: seconds of one request, from the search for the host to the last byte of the reply; each attempt has
            its own.
        retries: further attempts after a failure that may pass: no connection, no answer in time, a reply that is no
            JSON, and the statuses 408, 409, 425, 429 and 5xx.
        back_off: seconds before the first further attempt; doubled each time, and at least what the server asks for.

    Raises:
        ConfigurationError: a setting cannot work.
    """

    base_url: str
    api_key_variable: str | None
    timeout: float
    retries: int
    back_off: float

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

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request.

        Raises:
            NoVerdictError: every attempt failed.
            ConfigurationError: the server refuses this request and would refuse the next, or the key is missing.
        """
        outcome = self._once(body)
        for attempt in range(self.retries):
            if not isinstance(outcome, _Failure):
                break
            time.sleep(min(max(self.back_off * 2**attempt, outcome.pause), LONGEST_PAUSE))
            outcome = self._once(body)
        if isinstance(outcome, _Failure):
            raise NoVerdictError(outcome.reason)
        return outcome

    def _once(self, body: dict[str, Any]) -> dict[str, Any] | _Failure:
        key = self._key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        try:
            reply = exchange(Request(address, json.dumps(body).encode(), headers), self.timeout, LONGEST_REPLY)
        except TimeoutError:
            return _Failure("no answer in time")
        except (OSError, HTTPException) as error:  # `URLError` is an `OSError`
            timed_out = isinstance(getattr(error, "reason", None), TimeoutError)
            return _Failure("no answer in time" if timed_out else "no connection")
        if not 200 <= reply.status < 300:
            return self._refusal(reply, key)
        try:
            decoded = json.loads(reply.body)
        except (ValueError, RecursionError):
            return _Failure("no JSON")
        return decoded if isinstance(decoded, dict) else {}

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

    def _refusal(self, reply: Reply, key: str | None) -> _Failure:
        """A status that may pass; raises for others, with the server's words but not the key, which some repeat."""
        if reply.status in _PASSING or reply.status >= 500:
            return _Failure(f"status {reply.status}", _seconds(reply.headers.get("Retry-After")))
        said = " ".join(_without(key, reply.body[:2000].decode(errors="replace")).split())[:300]
        raise ConfigurationError(
            f"The judge at {self.base_url} refused with status {reply.status}: {said or reply.reason}. Check "
            "`base_url`, `model` and the key that `api_key_variable` names."
        )


def _without(key: str | None, text: str) -> str:
    """The text without the key, also where JSON has escaped it; some encoders escape slashes too."""
    quoted = json.dumps(key or "")[1:-1]
    for form in filter(None, (quoted.replace("/", "\\/"), (key or "").replace("/", "\\/"), quoted, key)):
        text = text.replace(form, "[key]")
    return text


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
