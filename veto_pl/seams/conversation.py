"""Conversations: messages of several turns, which of them are references, and how a template has rendered them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Message = Mapping[str, Any]
"""What a chat template reads: `role`, `content`, and perhaps `tool_calls`, `name` and others.

The content is a text, or parts where it has images: `{"type": "image"}` and `{"type": "text", "text": ...}`.
"""


def text_of(message: Message) -> str:
    """Return the text of a message, without its images.

    Example:
        >>> text_of({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]})
        'What is it?'
    """
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


def with_text(message: Message, text: str) -> Message:
    """Return a message with another text, its images where they were: the text stands where the first one stood."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return {**message, "content": text}
    first = next((i for i, part in enumerate(content) if part["type"] == "text"), len(content))
    front, behind = content[:first], [part for part in content[first + 1 :] if part["type"] != "text"]
    return {**message, "content": [*front, {"type": "text", "text": text}, *behind]}


@dataclass(frozen=True)
class Conversation:
    """The messages of a row, in their order.

    Args:
        messages: what was said; behind the last turn there is nothing, unless nothing is a turn.
        turns: the places in `messages` of the assistant's messages that are references, rising; none where the row has
            no reference, and the assistant is to write behind all messages.
        tools: JSON schemas of the tools that the assistant may call.
    """

    messages: tuple[Message, ...]
    turns: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def opening(self) -> tuple[Message, ...]:
        """Return the messages in front of the first reference: what a rollout continues."""
        return self.messages[: self.turns[0]] if self.turns else self.messages

    @property
    def question(self) -> int | None:
        """Return the place of the user's last message in the opening, if there is one."""
        opening = self.opening
        return next((i for i in reversed(range(len(opening))) if opening[i]["role"] == "user"), None)

    def asking(self, text: str) -> Conversation:
        """Return the same conversation with another text of the user's last message in the opening."""
        place = self.question
        if place is None or text_of(self.messages[place]) == text:
            return self
        messages = [*self.messages]
        messages[place] = with_text(messages[place], text)
        return replace(self, messages=tuple(messages))

    def behind(self, *messages: Message) -> Conversation:
        """Return the same conversation with messages in front of it."""
        return replace(self, messages=(*messages, *self.messages), turns=tuple(i + len(messages) for i in self.turns))

    def with_texts(self, change: Callable[[Any], Any]) -> Conversation:
        """Return the same conversation with its messages and tools put through `change`, which keeps their shape."""
        return replace(self, messages=tuple(map(change, self.messages)), tools=tuple(map(change, self.tools)))

    def plain(self) -> dict[str, Any]:
        """Return the conversation as plain values, for `from_plain`."""
        return {
            "messages": [dict(message) for message in self.messages],
            "turns": list(self.turns),
            "tools": [dict(tool) for tool in self.tools],
        }

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> Conversation:
        """Return the conversation that `plain` has told."""
        return Conversation(tuple(values["messages"]), tuple(values["turns"]), tuple(values["tools"]))


@dataclass(frozen=True)
class Turn:
    """The texts around a reference, as a template renders them.

    Args:
        before: all that stands in front of it, with what asks the assistant to write.
        through: all messages up to and with the reference.
        start: characters of `through` in front of what is trained on, where the template marks that by
            `{% generation %}`; None where `before` ends.
    """

    before: str
    through: str
    start: int | None = None


@dataclass(frozen=True)
class Rendering:
    """A conversation with references as text.

    Args:
        text: all messages up to and with the last reference.
        turns: the references, in their order.
    """

    text: str
    turns: tuple[Turn, ...]
