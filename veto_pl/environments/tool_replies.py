"""What an agent reads of its calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from veto_pl.seams import Message, Reply


class CallFailedError(Exception):
    """A tool raises it with all that the agent is to read of a call that has failed."""


def calls_in(turn: Message) -> list[Mapping[str, Any]]:
    """Return the calls of a turn: of each the `name`, and the `arguments` as a mapping."""
    return [call["function"] for call in turn.get("tool_calls") or ()]


def told(results: Sequence[tuple[str, Any, bool]], turn: Message) -> Reply:
    """Return what the agent reads of its calls; without any, the episode is over.

    Args:
        results: of each call the tool, what is said of it, and whether it has failed.
        turn: in which the agent has made them, and perhaps others that nobody can read.
    """
    unread = tuple(turn.get("invalid_tool_calls") or ())
    messages: list[Message] = [{"role": "tool", "name": name, "content": _text(said)} for name, said, _ in results]
    messages += [
        {"role": "tool", "name": "error", "content": f"Error: this call is no JSON with `name` and `arguments`: {call}"}
        for call in unread
    ]
    failed = bool(unread) or any(failed for *_, failed in results)
    return Reply(tuple(messages), done=not messages, failed=failed)


def problem(error: BaseException) -> str:
    """Return what the agent reads of an exception."""
    if isinstance(error, CallFailedError):
        return str(error)
    return f"Error: {type(error).__name__}: {str(error)[:500]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
