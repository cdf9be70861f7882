"""Templates, which turn an example into the text that the models read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from string import Formatter
from typing import TYPE_CHECKING, Any
from zlib import crc32

from jinja2 import TemplateError

from veto_pl.core.bounds import UnitInterval
from veto_pl.data.chat_templates import format_as_jinja, user_only_template, with_settings
from veto_pl.data.control_words import Reading, remove_json_marks, remove_marks
from veto_pl.data.jsonl import listed, shown
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Template

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

    Raises:
        ConfigurationError: for a malformed format, a field that the row lacks, or a tokenizer without a BOS token.

    Example:
        >>> template = PlainTemplate(format="Q: {prompt} ({unit[short]})\nA:")
        >>> template(Example("How far?", row={"unit": {"short": "m"}}), tokenizer=None)
        'Q: How far? (m)\nA:'
    """

    format: str = "{prompt}"
    add_bos: bool = False
    control_words: Reading = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format("PlainTemplate.format", self.format)

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

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the format around the user's message as a chat template; None where it names more than the prompt."""
        around = format_as_jinja(self.format)
        return None if around is None else user_only_template(around, add_bos=self.add_bos)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Template):
    """A conversation of one user message, rendered by the chat template and left open for the assistant.

    Args:
        system: the system message, taken literally, or None for none.
        user: a format string for the user message, as in `PlainTemplate.format`.
        template: a Jinja chat template to use instead of the tokenizer's.
        arguments: further arguments of the chat template, such as `enable_thinking: false`.
        control_words: what control words in the row's own text become: `text`, since the chat template writes those
            that it needs, or `tokens`.

    Raises:
        ConfigurationError: for a malformed `user`, a field that the row lacks, a tokenizer without a chat template, or
            a template that refuses the conversation.
    """

    system: str | None = None
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
        return cls(), cls(system="Be brief.", control_words="tokens")

    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the rendered conversation."""
        if self.template is None and tokenizer.chat_template is None:
            raise ConfigurationError(
                "`ChatTemplate` expected a tokenizer with a chat template, got one without. Use `PlainTemplate`, or "
                "set `ChatTemplate.template`."
            )
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        user = fill("ChatTemplate.user", self.user, example)
        messages.append({"role": "user", "content": user if self.control_words == "text" else remove_marks(user)})
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **self.arguments}
        if self.template is not None:
            options["chat_template"] = self.template
        try:
            return str(tokenizer.apply_chat_template(messages, **options))
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, and may raise anything
            reason = str(error)[:300] if isinstance(error, (TemplateError, ValueError)) else repr(error)[:300]
            raise ConfigurationError(f"The chat template refused the conversation: {reason}. Change it.") from error

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the chat template in use, with `system`, `user` and `arguments` set in front; None where `user` names
        other fields.
        """
        around = format_as_jinja(self.user)
        if around is None or (self.template is None and tokenizer.chat_template is None):
            return None
        used = tokenizer.get_chat_template() if self.template is None else self.template
        return with_settings(used, around, self.system, self.arguments)


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
        return (self.first if _unit_hash(example) < self.fraction else self.second)(example, tokenizer)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return that of the template that shows more rows, or else that of the other: the student reads both."""
        shares = sorted(((self.fraction, 1, self.first), (1 - self.fraction, 0, self.second)), key=lambda one: one[:2])
        told = [part.chat_template(tokenizer) for share, _, part in reversed(shares) if share > 0]
        return next((text for text in told if text is not None), None)


def _unit_hash(example: Example) -> float:
    """Return a number in [0, 1) that depends on the row alone: a hint may have changed its prompt."""
    row = example.row or {"prompt": example.prompt}
    told = remove_json_marks(json.dumps(row, skipkeys=True, default=lambda value: type(value).__name__))
    return crc32(told.encode()) / 2**32


class _Joining(Formatter):
    """A formatter with one more conversion than `str.format`: `!j` joins the entries of a list."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion != "j":
            return super().convert_field(value, conversion)
        return "".join(map(str, value))


_FORMATTER = _Joining()


def _names(text: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]


def check_format(setting: str, text: str) -> None:
    """Refuse a format string that no row could fill.

    Args:
        setting: the name of the format, for messages.
        text: the format string.

    Raises:
        ConfigurationError: it is malformed, or has fields without a name.
    """
    try:
        names = _names(text)
    except ValueError as error:
        raise ConfigurationError(f"`{setting}` is malformed: {error}, in {text!r}. Double literal braces.") from error
    if any(not name or name[0].isdigit() for name in names):
        raise ConfigurationError(f"`{setting}` expected named fields such as {{prompt}}, got {text!r}. Name them.")


def fill(setting: str, text: str, example: Example, **more: Any) -> str:
    """Fill the format string `text` with the fields of the row, `{prompt}` and `more`.

    Args:
        setting: the name of the format, for messages.
        text: the format string.
        example: the row.
        more: further fields, which win over those of the row.

    Raises:
        ConfigurationError: a field is named that there is not.
        DataError: the row's text is no valid Unicode.
    """
    # The prompt wins over a field of that name: the task has said which field the prompt is.
    fields = {**example.row, **more, "prompt": example.prompt}
    try:
        filled = _FORMATTER.vformat(text, (), fields)
    except (LookupError, AttributeError, TypeError, ValueError, MemoryError, OverflowError) as error:
        raise ConfigurationError(
            f"`{setting}` names the field `{_unfillable(text, fields)}`, which the row cannot fill "
            f"({type(error).__name__}: {str(error)[:100]}). Available: {listed(fields)}."
        ) from error
    try:
        filled.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"`{setting}` got text that is no valid Unicode from the row {shown(example.prompt)}."
        ) from error
    return filled


def can_fill(text: str, example: Example) -> bool:
    """Return whether the row has every field that the format string names, and something in each."""
    fields = {**example.row, "prompt": example.prompt}
    if not all(_found(name, fields) for name in _names(text)):
        return False
    return all(Formatter().get_field(name, (), fields)[0] not in (None, "") for name in _names(text))


def _unfillable(text: str, fields: dict[str, Any]) -> str:
    """Return the first field that cannot be looked up; failing that, the whole format is to blame."""
    return next((name for name in _names(text) if not _found(name, fields)), text)


def _found(name: str, fields: dict[str, Any]) -> bool:
    try:
        Formatter().get_field(name, (), fields)
    except (LookupError, AttributeError, TypeError, ValueError):
        return False
    return True
