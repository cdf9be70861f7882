"""Prompts of a run as Jinja chat templates, which other programs make the same prompts by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from string import Formatter
from typing import Any

from veto_pl.seams import Conversation, text_of


def format_as_jinja(text: str) -> str | None:
    """Return a Jinja expression for a format string, filled with `message['content']`; None where it names another
    field.
    """
    parts = []
    for literal, name, spec, conversion in Formatter().parse(text):
        parts += [repr(literal)] if literal else []
        if name is not None:
            if (name, spec, conversion) != ("prompt", "", None):
                return None
            parts.append("message['content']")
    return " ~ ".join(parts) or "''"


def user_only_template(user: str, *, add_bos: bool) -> str:
    """Return a chat template of user messages and answers that end with EOS; it refuses other roles.

    Args:
        user: the Jinja expression for a user's `message`.
        add_bos: whether the conversation begins with the tokenizer's BOS text.
    """
    return (
        ("{{ bos_token }}" if add_bos else "")
        + "{% for message in messages %}"
        + "{% if message['role'] == 'user' %}{{ "
        + user
        + " }}{% elif message['role'] == 'assistant' %}{{ message['content'] ~ eos_token }}"
        + "{% else %}{{ raise_exception('The model was trained on messages of the user alone, got the role ' "
        + "~ message['role']) }}{% endif %}{% endfor %}"
    )


def with_settings(
    template: str, user: str, system: str | None, arguments: Mapping[str, Any], *, merge_system: bool = False
) -> str:
    """Return a chat template that reads conversations as the run's were read.

    Args:
        template: the chat template of the run.
        user: the Jinja expression for the text of a user's `message`.
        system: put in front of a conversation that has no system message, or None.
        arguments: what the template's variables are where the caller does not set them.
        merge_system: put the system message in front of the user's first one.
    """
    before = [f"{{% set {name} = {name} if {name} is defined else {value!r} %}}" for name, value in arguments.items()]
    if user != "message['content']":
        before.append(
            "{% set read = namespace(messages=[]) %}{% for message in messages %}{% set read.messages = read.messages "
            f"+ [{{'role': 'user', 'content': {user}}} if message['role'] == 'user' else message] %}}{{% endfor %}}"
            "{% set messages = read.messages %}"
        )
    if system is not None:
        before.append(
            "{% if not messages or messages[0]['role'] != 'system' %}{% set messages = "
            f"[{{'role': 'system', 'content': {system!r}}}] + messages %}}{{% endif %}}"
        )
    if merge_system:
        before.append(
            "{% if messages|length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
            "{% set messages = [{'role': 'user', 'content': messages[0]['content'] ~ '\\n\\n' ~ "
            "messages[1]['content']}] + messages[2:] %}{% endif %}"
        )
    # The environment takes the first newline behind a block away, so the template begins as it would alone.
    return "".join(before) + "\n" + template if before else template


def merged_system(said: Conversation) -> Conversation:
    """Return a conversation with its system message in front of the user's first one, where it has both."""
    first, *others = said.messages or ({"role": ""},)
    place = next((i for i, message in enumerate(others) if message["role"] == "user"), None)
    if first["role"] != "system" or place is None:
        return said
    asked = others[place]
    said_first = f"{text_of(first)}\n\n"
    behind = asked["content"]
    others[place] = {
        **asked,
        "content": said_first + behind if isinstance(behind, str) else [{"type": "text", "text": said_first}, *behind],
    }
    return replace(said, messages=tuple(others), turns=tuple(turn - 1 for turn in said.turns))
