"""Format strings over the fields of a row, checked before any row is there."""

from __future__ import annotations

from string import Formatter
from typing import Any

from veto_pl.data.jsonl import listed, shown
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example


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
