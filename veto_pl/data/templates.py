"""Templates, which turn an example into the text that the models read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

from veto_pl.core.bounds import UnitInterval
from veto_pl.data.chat_templates import format_as_jinja, merged_system, user_only_template, with_settings
from veto_pl.data.control_words import ControlWords, Reading, remove_json_marks, remove_marks, unmarked
from veto_pl.data.dialogues import ChatDialogue, PlainDialogue
from veto_pl.data.format_strings import check_format, fill
from veto_pl.data.image_fields import IMAGE
from veto_pl.data.renderings import Renderer
from veto_pl.data.tokenising import row_images, tokenise_prompts
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Conversation, Dialogue, Example, Message, Rendering, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESERVED = ("conversation", "chat_template", "tokenize", "add_generation_prompt")


@dataclass(frozen=True, kw_only=True)
class PlainTemplate(Template):
    r"""A format string over the row.

    Args:
        format: names the prompt as `{prompt}` and any field of the row, nested ones as `{metadata[word]}`; `!j` writes
            the entries of a list one behind the other, `{metadata[letters]!j}`. A literal brace is doubled.
        add_bos: put the tokenizer's BOS text in front, where the text does not begin with it.
        control_words: what control words in the row's own text become: `tokens`, for prompts that bring their control
            words along, or `text`, so that no row can pass for a turn of a conversation.
        reply: what an environment says behind a turn of the agent, a format string over `{content}`, `{role}` and what
            else the message has.

    Raises:
        ConfigurationError: for a malformed format, a field that the row lacks, or a tokenizer without a BOS token.

    Example:
        >>> template = PlainTemplate(format="Q: {prompt} ({unit[short]})\nA:")
        >>> template(Example("How far?", row={"unit": {"short": "m"}}), tokenizer=None)
        'Q: How far? (m)\nA:'
    """

    format: str = field(default="{prompt}", kw_only=False)
    add_bos: bool = False
    control_words: Reading = "tokens"
    reply: str = "{content}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format("PlainTemplate.format", self.format)
        check_format("PlainTemplate.reply", self.reply)

    @classmethod
    def examples(cls) -> tuple[PlainTemplate, ...]:
        return cls(), cls(format="Q: {prompt}", add_bos=True, control_words="text")

    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the filled format."""
        text = fill("PlainTemplate.format", self.format, example)
        text = text if self.control_words == "text" else remove_marks(text)
        if not self.add_bos:
            return text
        if tokenizer.bos_token is None:
            raise ConfigurationError("`PlainTemplate.add_bos` is set, but the tokenizer has no BOS token. Unset it.")
        return text if text.startswith(tokenizer.bos_token) else f"{tokenizer.bos_token}{text}"

    def dialogue(
        self,
        example: Example,
        tokenizer: PreTrainedTokenizerBase,
        tools: tuple[Mapping[str, Any], ...] = (),
        ends: Collection[int] = (),
    ) -> Dialogue:
        """Return a dialogue of plain text, which shows no tools: the prompt has to say what there are."""

        def read(prompt: str) -> list[int]:
            return tokenise_prompts([replace(example, prompt=prompt)], self, tokenizer)[0][0]

        def shown(message: Message) -> str:
            return fill("PlainTemplate.reply", self.reply, Example("", row=message))

        return PlainDialogue(example.prompt, read, shown, tokenizer)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the format around the user's message as a chat template; None where it names more than the prompt."""
        around = format_as_jinja(self.format)
        return None if around is None else user_only_template(around, add_bos=self.add_bos)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Template):
    """Renders conversations by the chat template, left open for the assistant.

    A row that is no conversation becomes one of a single message of the user.

    Args:
        system: the system message of rows that bring none, taken literally, or None for none.
        system_field: a field of the row with its system message; rows where it is missing or empty get `system`.
        merge_system: put the system message in front of the user's first one, for chat templates that know no such
            role.
        user: a format string for the user's last message, as in `PlainTemplate.format`.
        template: a Jinja chat template to use instead of the tokenizer's.
        arguments: further arguments of the chat template, such as `enable_thinking: false`.
        control_words: what control words in the row's own text become: `text`, since the chat template writes those
            that it needs, or `tokens`.

    Raises:
        ConfigurationError: for a malformed `user`, a field that the row lacks, a tokenizer without a chat template, or
            a template that refuses the conversation or leaves out a part of it.
    """

    system: str | None = None
    system_field: str | None = None
    merge_system: bool = False
    user: str = "{prompt}"
    template: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    control_words: Reading = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format("ChatTemplate.user", self.user)
        if taken := [name for name in _RESERVED if name in self.arguments]:
            raise ConfigurationError(f"`ChatTemplate.arguments` must not set {', '.join(taken)}. Remove them.")

    @classmethod
    def examples(cls) -> tuple[ChatTemplate, ...]:
        return cls(), cls(system="Be brief.", control_words="tokens"), cls(system="Be brief.", merge_system=True)

    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the rendered conversation up to where the assistant is to write."""
        return Renderer(tokenizer, self.template, self.arguments).asking(self._conversation(example))

    def rendered(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
        """Return the rendered conversation with its references."""
        return Renderer(tokenizer, self.template, self.arguments).rendering(self._conversation(example))

    def dialogue(
        self,
        example: Example,
        tokenizer: PreTrainedTokenizerBase,
        tools: tuple[Mapping[str, Any], ...] = (),
        ends: Collection[int] = (),
    ) -> Dialogue:
        """Return the dialogue that the chat template shows; raise `ConfigurationError` for a row with images."""
        if example.images:
            row_images(example, None)  # which says so
        marked = ControlWords(tokenizer).mark_words(example) if self.control_words == "text" else example
        said = self._conversation(marked)
        said = Conversation(said.opening, tools=(*said.tools, *tools))
        return ChatDialogue(said, Renderer(tokenizer, self.template, self.arguments), ends)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the chat template in use, with `system`, `user` and `arguments` set in front; None where `user` names
        other fields.
        """
        around = format_as_jinja(self.user)
        if around is None or (self.template is None and tokenizer.chat_template is None):
            return None
        used = tokenizer.get_chat_template() if self.template is None else self.template
        return with_settings(used, around, self.system, self.arguments, merge_system=self.merge_system)

    def _conversation(self, example: Example) -> Conversation:
        """Return what is rendered: the row's conversation, or one of its prompt, with the system message."""
        user = fill("ChatTemplate.user", self.user, example)
        said = example.conversation or Conversation(({"role": "user", "content": [IMAGE] * len(example.images) or ""},))
        said = said.asking(user)
        said = self._with_system(example, said.with_texts(unmarked) if self.control_words == "tokens" else said)
        return merged_system(said) if self.merge_system else said

    def _with_system(self, example: Example, said: Conversation) -> Conversation:
        own = example.row.get(self.system_field) if self.system_field is not None else None
        text = own if isinstance(own, str) and own else self.system
        has_one = bool(said.messages) and said.messages[0]["role"] in ("system", "developer")
        return said if text is None or has_one else said.behind({"role": "system", "content": text})


@dataclass(frozen=True, kw_only=True)
class TemplateMixture(Template):
    """Shows some rows by one template and the others by another, so that a model learns to read both.

    A row is always shown by the same template, on every rank and in every epoch: its content decides.

    Args:
        first: shows the share `fraction` of the rows.
        second: shows the others.
        fraction: in [0, 1].

    Raises:
        ConfigurationError: `fraction` lies outside [0, 1].
    """

    first: Template
    second: Template
    fraction: UnitInterval = 0.5

    @classmethod
    def examples(cls) -> tuple[TemplateMixture, ...]:
        return (cls(first=PlainTemplate(), second=ChatTemplate()),)

    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text of the template that this row falls to."""
        return self._of(example)(example, tokenizer)

    def rendered(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
        """Return what the template makes of a conversation that this row falls to."""
        return self._of(example).rendered(example, tokenizer)

    def dialogue(
        self,
        example: Example,
        tokenizer: PreTrainedTokenizerBase,
        tools: tuple[Mapping[str, Any], ...] = (),
        ends: Collection[int] = (),
    ) -> Dialogue:
        """Return the dialogue of the template that this row falls to."""
        return self._of(example).dialogue(example, tokenizer, tools, ends)

    @property
    def renders_conversations(self) -> bool:
        """Return whether both do."""
        return self.first.renders_conversations and self.second.renders_conversations

    @property
    def shows_dialogues(self) -> bool:
        """Return whether both do."""
        return self.first.shows_dialogues and self.second.shows_dialogues

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return that of the template that shows more rows, or else that of the other: the student reads both."""
        shares = sorted(((self.fraction, 1, self.first), (1 - self.fraction, 0, self.second)), key=lambda one: one[:2])
        told = [part.chat_template(tokenizer) for share, _, part in reversed(shares) if share > 0]
        return next((text for text in told if text is not None), None)

    def _of(self, example: Example) -> Template:
        return self.first if _unit_hash(example) < self.fraction else self.second


@dataclass(frozen=True, kw_only=True)
class BySource(Template):
    """Shows the rows of each data set of a mixture by a template of its own.

    Args:
        default: shows the rows of all other sets.
        templates: by the name of the set.
    """

    default: Template = PlainTemplate()
    templates: dict[str, Template] = field(default_factory=dict, hash=False)

    @classmethod
    def examples(cls) -> tuple[BySource, ...]:
        return (cls(templates={"chat": ChatTemplate()}),)

    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text of the template of the row's set."""
        return self._of(example, tokenizer)(example, tokenizer)

    def rendered(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
        """Return what the template of the row's set makes of a conversation."""
        return self._of(example, tokenizer).rendered(example, tokenizer)

    def dialogue(
        self,
        example: Example,
        tokenizer: PreTrainedTokenizerBase,
        tools: tuple[Mapping[str, Any], ...] = (),
        ends: Collection[int] = (),
    ) -> Dialogue:
        """Return the dialogue of the template of the row's set."""
        return self._of(example, tokenizer).dialogue(example, tokenizer, tools, ends)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return that of the first set that has one, the default's before all others."""
        told = (part.chat_template(tokenizer) for part in (self.default, *self.templates.values()))
        return next((text for text in told if text is not None), None)

    def _of(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> Template:
        own = self.templates.get(example.source, self.default)
        if example.conversation is not None and not own.renders_conversations:
            own.rendered(example, tokenizer)  # which says so
        return own


def _unit_hash(example: Example) -> float:
    """Return a number in [0, 1) that depends on the row alone: a hint may have changed its prompt."""
    row: Any = example.row or {"prompt": example.prompt}
    if example.conversation is not None:  # without what a hint changes
        row = [row, [m for i, m in enumerate(example.conversation.messages) if i != example.conversation.question]]
    told = remove_json_marks(json.dumps(row, skipkeys=True, default=lambda value: type(value).__name__))
    return crc32(told.encode()) / 2**32
