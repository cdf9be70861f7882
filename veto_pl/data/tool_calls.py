"""What an agent has said: its text, and the calls of tools in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from veto_pl.seams import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def message_of(
    written: Sequence[int], read: Sequence[int], tools: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> Message:
    """Return the turn that an agent has written.

    The tokenizer's own parser reads it where it has one (`response_template` of transformers); else calls are JSON
    between `<tool_call>` and `</tool_call>`, as in the chat templates of Hermes and Qwen.

    Args:
        written: the ids of the turn, without the one that ends it.
        read: the ids in front of it.
        tools: JSON schemas of the tools.
        tokenizer: of the models.

    Returns:
        `role`, `content`; `tool_calls`, where there are any, each with `type` and `function`, which has a `name` and
        `arguments`, a mapping; `invalid_tool_calls`, the texts of calls that cannot be read, where there are any.
    """
    text = str(tokenizer.decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if getattr(tokenizer, "response_template", None) is None:
        return tagged_calls(text)
    try:
        found = tokenizer.parse_response(list(written), prefix=list(read), tools=[dict(tool) for tool in tools] or None)
        calls = [_checked(call) for call in found.get("tool_calls") or ()]
    except Exception:  # of many kinds: a text that is no message, or a call that is none
        return {"role": "assistant", "content": text, "invalid_tool_calls": [text]}
    said = {key: value for key, value in found.items() if key not in ("role", "content", "tool_calls")}
    said |= {"role": "assistant", "content": str(found.get("content") or "")}
    return said | ({"tool_calls": calls} if calls else {})


def tagged_calls(text: str) -> Message:
    """Return a turn with its calls, which are JSON between tags; the last closing tag may be missing.

    Example:
        >>> tagged_calls('Add.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')["tool_calls"]
        [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}]
        >>> tagged_calls("<tool_call>{add}</tool_call>")
        {'role': 'assistant', 'content': '', 'invalid_tool_calls': ['{add}']}
    """
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if "<tool_call>" not in text:
        return message
    found = _CALL.findall(text)
    read = [_call_of(told) for told in found]
    calls = [call for call in read if call is not None]
    unread = [told.strip() for told, call in zip(found, read, strict=True) if call is None]
    message["content"] = _CALL.sub("", text).strip()
    return message | ({"tool_calls": calls} if calls else {}) | ({"invalid_tool_calls": unread} if unread else {})


def tagged_text(message: Message) -> str:
    """Return the text of a turn with its calls, as `tagged_calls` reads it.

    Example:
        >>> tagged_text(tagged_calls('Add.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'))
        'Add.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    """
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [json.dumps({key: one[key] for key in ("name", "arguments")}, ensure_ascii=False) for one in functions]
    calls += message.get("invalid_tool_calls") or ()
    return str(message["content"]) + "".join(f"<tool_call>{call}</tool_call>" for call in calls)


def _call_of(told: str) -> dict[str, Any] | None:
    """Return the call that a JSON text tells; None where it tells none."""
    try:
        return _checked({"function": json.loads(told)})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _checked(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are a mapping; raise a built-in error for another."""
    name, arguments = call["function"]["name"], call["function"].get("arguments", {})
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("a call has a name and arguments by their names")
    json.dumps([name, arguments], ensure_ascii=False).encode()  # JSON may tell half of a character
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
