"""Reads conversations from rows: messages with `role` and `content`, or with `from` and `value`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from veto_pl.data.image_fields import is_image, no_part
from veto_pl.data.jsonl import TEXT, check_fields, listed, shown
from veto_pl.exceptions import DataError
from veto_pl.seams import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Roles by the names that other collections give them."""


def read_messages(row: Mapping[str, Any], field: str, where: str) -> list[Message]:
    """Return the messages of a field.

    Args:
        row: of a file.
        field: a list of messages, perhaps as JSON text, as tables have it.
        where: the row's place; it opens the message of a `DataError`.

    Raises:
        DataError: the field is missing, or a message has an unknown role or no text.
    """
    if field not in row:
        others = [name for name in ("messages", "conversations", "conversation", "prompt") if name in row]
        way = f" Set `data.task.messages: {others[0]}`." if others else ""
        raise DataError(f"{where}: field `{field}` expected messages, got a row without it; it has {listed(row)}.{way}")
    given = _from_json(row[field])
    if isinstance(given, str):
        raise DataError(
            f"{where}: field `{field}` expected a list of messages, got {shown(given)}. Rows of one prompt and one "
            "answer are read by `data.task: Rows`."
        )
    if not isinstance(given, list) or not given:
        raise DataError(f"{where}: field `{field}` expected a list of messages, got {shown(given)}.")
    return [_message(one, f"{where}: field `{field}[{place}]`") for place, one in enumerate(given)]


def read_answer(row: Mapping[str, Any], field: str, where: str) -> list[Message]:
    """Return the messages of a field that holds what follows, which may be the text of one answer."""
    if isinstance(row.get(field), str) and isinstance(_from_json(row[field]), str):
        check_fields(row, where, **{field: TEXT})
        return [{"role": "assistant", "content": row[field]}]
    return read_messages(row, field, where)


def read_tools(row: Mapping[str, Any], field: str, where: str) -> tuple[dict[str, Any], ...]:
    """Return the JSON schemas of a field, which may be JSON text, or missing."""
    given = _from_json(row.get(field) or [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError(f"{where}: field `{field}` expected a list of JSON schemas, got {shown(given)}.")
    return tuple(_filled(one) for one in given)


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise DataError(f"{where} expected a message, got {shown(given)}.")
    told = _filled(given)
    role = told.pop("role", None) or told.pop("from", None)
    role = OTHER_NAMES.get(str(role), role)
    if role not in ROLES:
        got = shown(role) if role is not None else f"a message with {listed(given)}"
        raise DataError(f"{where} expected one of the roles {', '.join(ROLES)}, got {got}.")
    content = _content(told.pop("content", told.pop("value", None)), where)
    if content is None and not told.get("tool_calls"):
        raise DataError(f"{where} expected a text, got a message with {listed(given)}.")
    calls = {"tool_calls": [_call(one, where) for one in told.pop("tool_calls")]} if told.get("tool_calls") else {}
    return {"role": role, "content": content or "", **calls, **told}


def _content(content: Any, where: str) -> str | list[Any] | None:
    """Return a text, which may be given in parts, or parts, where some of them are images."""
    if isinstance(content, list):
        texts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if other := [part for part in content if part not in texts and not is_image(part)]:
            raise no_part(other[0], where)
        if any(map(is_image, content)):
            return [part if is_image(part) else {"type": "text", "text": part["text"]} for part in content]
        content = "".join(part["text"] for part in texts)
    if content is None:
        return None
    check_fields({"content": content}, where, content=TEXT)
    return str(content)


def _call(given: Any, where: str) -> dict[str, Any]:
    """Return a call of a tool with its arguments as values, as chat templates read them."""
    if not isinstance(given, dict):
        raise DataError(f"{where} expected calls of tools, got {shown(given)}.")
    call = dict(given)
    function = call.get("function")
    if isinstance(function, dict):
        call["function"] = {**function, "arguments": _from_json(function.get("arguments", {}))}
    elif "arguments" in call:
        call["arguments"] = _from_json(call["arguments"])
    return call


def _from_json(value: Any) -> Any:
    """Return the list or object of a JSON text, and any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _filled(value: Any) -> Any:
    """Return a value without the empty entries of its objects, with which tables fill up what a row does not have."""
    if isinstance(value, dict):
        return {key: _filled(entry) for key, entry in value.items() if entry is not None}
    return [_filled(entry) for entry in value] if isinstance(value, list) else value


def answers(messages: list[Message], first: int) -> Iterator[int]:
    """Yield the places of the answers from `first` on, but for those whose `weight` is 0."""
    for place, message in enumerate(messages):
        if place >= first and message["role"] == "assistant" and message.get("weight", 1) != 0:
            yield place
