"""Renders conversations by a chat template, and refuses templates by which an answer would be trained on that no
generation could give.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.jsonl import shown
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Conversation, Message, Rendering, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "probe"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Renderer:
    """A chat template with its arguments.

    Args:
        tokenizer: whose chat template it is, and whose special tokens it names.
        template: a Jinja chat template in place of the tokenizer's.
        arguments: further variables of the template.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    arguments: dict[str, Any]

    def text(
        self, messages: Sequence[Message], *, tools: Sequence[Any] = (), add_generation_prompt: bool = False
    ) -> str:
        """Return the text of some messages.

        Raises:
            ConfigurationError: there is no template, or it refuses the messages.
        """
        if self.template is None and self.tokenizer.chat_template is None:
            raise ConfigurationError(
                "`ChatTemplate` expected a tokenizer with a chat template, got one without. Use `PlainTemplate`, or "
                f"set `ChatTemplate.template`, for instance to ChatML: {CHATML!r}."
            )
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, **self.arguments}
        options |= {"tools": list(tools)} if tools else {}
        options |= {} if self.template is None else {"chat_template": self.template}
        conversation = self._shaped(messages)
        if not any("date" in name for name in self.arguments):
            _warn_of_dates(str(self.template or self.tokenizer.chat_template))
        return str(self._run(lambda: self.tokenizer.apply_chat_template(conversation, tokenize=False, **options)))

    def asking(self, conversation: Conversation) -> str:
        """Return the text of a conversation up to where the assistant is to write.

        Raises:
            ConfigurationError: the template leaves out a message or the tools.
        """
        messages, tools = conversation.opening, conversation.tools
        text = self.text(messages, tools=tools, add_generation_prompt=True)
        self._check_nothing_is_left_out(messages, tools, text, asks=True)
        return text

    def rendering(self, conversation: Conversation) -> Rendering:
        """Return the text of a conversation with its references.

        Raises:
            ConfigurationError: the template leaves out a message or the tools, or has no generation prompt, or one that
                no answer follows.
        """
        last = conversation.turns[-1]
        shown_messages, tools = conversation.messages[: last + 1], conversation.tools
        text = self.text(shown_messages, tools=tools)
        self._check_nothing_is_left_out(shown_messages, tools, text, asks=False)
        turns = tuple(self._turn(conversation, place) for place in conversation.turns)
        return Rendering(text, turns)

    def _turn(self, conversation: Conversation, place: int) -> Turn:
        messages, tools = conversation.messages, conversation.tools
        before = self.text(messages[:place], tools=tools, add_generation_prompt=True)
        through = self.text(messages[: place + 1], tools=tools)
        if not through.startswith(before):
            has_system = any(message["role"] == "system" for message in messages[:place])
            common = next((i for i, (a, b) in enumerate(zip(before, through, strict=False)) if a != b), len(through))
            raise ConfigurationError(
                f"The chat template asks for an answer by {shown(before[common:])}, but shows the answer behind "
                f"{shown(through[common:])}: a student could not write what it is trained on. Set "
                "`ChatTemplate.arguments`, such as `enable_thinking`, or another `ChatTemplate.template`"
                f"{_system_remedy('system') if has_system else ''}."
            )
        self._check_generation_prompt(conversation, place, before, through)
        return Turn(before, through, self._marked_start(messages[: place + 1], tools))

    def _check_generation_prompt(self, conversation: Conversation, place: int, before: str, through: str) -> None:
        """Refuse a template without a generation prompt that puts something in front of an answer all the same."""
        said = conversation.messages[place].get("content")
        found = through.find(said.strip(), len(before)) if isinstance(said, str) and said.strip() else -1
        header = through[len(before) : found] if found >= 0 else ""
        if header.strip() and before == self.text(conversation.messages[:place], tools=conversation.tools):
            raise ConfigurationError(
                f"The chat template puts {shown(header)} in front of an answer, but not where it asks for one: it has "
                "no generation prompt, so the student would have to write it. Set `ChatTemplate.template` to one that "
                "writes it under `{% if add_generation_prompt %}`."
            )

    def _marked_start(self, messages: Sequence[Message], tools: Sequence[Any]) -> int | None:
        """Return where the last message begins that `{% generation %}` marks; None for a template without that."""
        source = self.template or self.tokenizer.get_chat_template(tools=list(tools) or None)
        if _MARKED.search(source) is None:
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        options = {**self.tokenizer.special_tokens_map, **self.arguments}
        _, places = self._run(
            lambda: render_jinja_template(
                conversations=[self._shaped(messages)],
                tools=list(tools) or None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                **options,
            )
        )
        answers = sum(message["role"] == "assistant" for message in messages)
        if len(places[0]) != answers:
            raise ConfigurationError(
                f"The chat template marks {len(places[0])} texts by `{{% generation %}}` in a conversation with "
                f"{answers} answers. Mark each answer once, or none."
            )
        start: int = places[0][-1][0]
        return start

    def _check_nothing_is_left_out(
        self, messages: Sequence[Message], tools: Sequence[Any], text: str, *, asks: bool
    ) -> None:
        """Refuse a template that ignores a message, as many do with those of tools, or the tools."""
        for place, message in enumerate(messages):
            said = [one["text"] for one in _parts(message) if "text" in one]
            if message["role"] == "assistant" or not said or all(one.strip() in text for one in said):
                continue
            if self._is_same([*messages[:place], *messages[place + 1 :]], tools, text, asks=asks):
                raise ConfigurationError(
                    f"The chat template leaves out messages of the role `{message['role']}`, such as {shown(said[0])}. "
                    f"Set `ChatTemplate.template` to one that shows them{_system_remedy(message['role'])}."
                )
        if tools and self._is_same(messages, (), text, asks=asks):
            raise ConfigurationError(
                "The chat template does not show the row's tools, or those of the environment. Set "
                "`ChatTemplate.template` to one that has `tools`, or `data.task.tools: null`."
            )
        self._check_calls_are_shown(messages, tools, text, asks=asks)

    def _check_calls_are_shown(
        self, messages: Sequence[Message], tools: Sequence[Any], text: str, *, asks: bool
    ) -> None:
        """Refuse a template that ignores calls of tools; the first message with some is looked at."""
        place = next((place for place, message in enumerate(messages) if message.get("tool_calls")), None)
        if place is None:
            return
        mute = {name: value for name, value in messages[place].items() if name != "tool_calls"}
        if self._is_same([*messages[:place], mute, *messages[place + 1 :]], tools, text, asks=asks):
            raise ConfigurationError(
                "The chat template leaves out calls of tools, such as "
                f"`{messages[place]['tool_calls'][0]['function']['name']}`. Set `ChatTemplate.template` to one that "
                "shows `tool_calls`."
            )

    def _is_same(self, messages: Sequence[Message], tools: Sequence[Any], text: str, *, asks: bool) -> bool:
        try:
            return self.text(messages, tools=tools, add_generation_prompt=asks) == text
        except ConfigurationError:  # so it reads what is missing
            return False

    def _shaped(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages as the template reads them: some know contents in parts only."""
        in_parts = reads_parts_only(str(self.template or self.tokenizer.chat_template))
        return [{**message, "content": _parts(message)} if in_parts else dict(message) for message in messages]

    def _run(self, render: Callable[[], Any]) -> Any:
        try:
            return render()
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, and may raise anything
            reason = str(error)[:300] if isinstance(error, (TemplateError, ValueError)) else repr(error)[:300]
            remedy = "Change it"
            if "system" in reason.lower():
                remedy = f"Change it{_system_remedy('system')}"
            raise ConfigurationError(f"The chat template refused the conversation: {reason}. {remedy}.") from error


def _parts(message: Message) -> list[Any]:
    """Return the content of a message as parts; none where it has no content."""
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


@lru_cache(maxsize=64)
def reads_parts_only(source: str) -> bool:
    """Return whether a chat template shows a text in parts and not a plain one, as that of LLaVA does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def shows(content: Any) -> bool:
        try:
            (text,), _ = render_jinja_template([[{"role": "user", "content": content}]], chat_template=source)
        except Exception:  # a template is a program, and may raise anything
            return False
        return _PROBE in text

    return not shows(_PROBE) and shows([{"type": "text", "text": _PROBE}])


@lru_cache(maxsize=64)
def _warn_of_dates(source: str) -> None:
    """Warn once of a template that writes the day on which it is asked."""
    if "strftime_now" in source:
        rank_zero_warn(
            "The chat template writes today's date into the prompts, so a run that goes on tomorrow reads other rows. "
            "Set it in `ChatTemplate.arguments`, as `date_string: 26 Jul 2024` if the template knows that."
        )


def _system_remedy(role: str) -> str:
    told = ", or set `ChatTemplate.merge_system: true`, which puts the system text in front of the user's first message"
    return told if role == "system" else ""
