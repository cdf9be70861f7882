"""Finds the images of rows: in a field of the row, and in the parts of its messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veto_pl.data.jsonl import shown
from veto_pl.exceptions import DataError
from veto_pl.seams import Example, Message, Picture

IMAGE: Mapping[str, Any] = {"type": "image"}
"""The part of a message in whose place an image stands."""
_TYPES = ("image", "image_url", "input_image")
_SOURCES = ("image", "image_url", "path", "url", "bytes", "base64", "data")


@dataclass(frozen=True)
class ImagePlace:
    """A row of a file and where its images lie.

    Args:
        where: the row's place; it opens the message of a `DataError`.
        folder: where relative paths begin; None for the folder of the row's file.
    """

    where: str
    folder: str | None = None

    def picture(self, given: Any, field: str) -> Picture:
        """Return the picture that a value stands for; raise `DataError` where there is none."""
        begin = Path(self.where.rpartition(":")[0]).parent if self.folder is None else Path(self.folder)
        try:
            found = Picture.of(given).inside(begin.expanduser().absolute())
            found.opened(whole=False)
        except DataError as error:
            raise DataError(f"{self.where}: field `{field}`: {error}") from error
        return found

    def pictures(self, row: Mapping[str, Any], field: str) -> tuple[Picture, ...]:
        """Return the pictures of a field, which holds one or a list; none where it is empty or missing."""
        given = row.get(field)
        if given is None or (isinstance(given, str | bytes | list | tuple) and not given):
            return ()
        several = given if isinstance(given, list | tuple) else [given]
        return tuple(self.picture(one, field) for one in several)


def is_image(part: Any) -> bool:
    """Return whether a part of a message is an image."""
    return isinstance(part, Mapping) and part.get("type") in _TYPES


def placed(
    messages: Sequence[Message], given: Sequence[Picture], place: ImagePlace, field: str, word: str | None
) -> list[tuple[Message, tuple[Picture, ...]]]:
    """Return the messages with their images: each is `IMAGE` in its message, and stands beside it.

    Parts without a source take the next of the given images. Where no part does, `word` in the texts stands for one,
    and where no text has it, all stand in front of the user's first message.

    Args:
        messages: with images in their parts.
        given: images of the row.
        place: of the row.
        field: of the messages, for messages of errors.
        word: stands for an image in a text, or None.

    Raises:
        DataError: there are more or fewer places than images.
    """
    if given and not any(is_image(part) and _source(part) is None for part in _parts(messages)):
        messages = _with_places(messages, len(given), word)
    left, found = iter(given), []
    places = sum(is_image(part) and _source(part) is None for part in _parts(messages))
    if places != len(given):
        told = "" if word is None else f", where `{word}` in a text stands for one (`data.task.image_word`)"
        raise DataError(
            f"{place.where}: field `{field}` has {places} places for images{told}, and the row has {len(given)} "
            "images. Make them as many: `data.task.images` names the field of the images, or a part has its own `path`."
        )
    for message in messages:
        sources = [_source(part) for part in _parts([message]) if is_image(part)]
        own = tuple(next(left) if one is None else place.picture(one, field) for one in sources)
        found.append((_plain(message), own))
    return found


def _parts(messages: Iterable[Message]) -> Iterator[Any]:
    return (part for message in messages if isinstance(message["content"], list) for part in message["content"])


def _source(part: Mapping[str, Any]) -> Any:
    """Return where the image of a part is; None where the part does not say."""
    given = next((part[name] for name in _SOURCES if part.get(name) is not None), None)
    if isinstance(given, Mapping) and "url" in given:
        return given["url"]
    if isinstance(given, str) and part.get("base64") == given:
        return f"data:;base64,{given}"
    return given


def _plain(message: Message) -> Message:
    if not isinstance(message["content"], list):
        return message
    return {**message, "content": [dict(IMAGE) if is_image(part) else part for part in message["content"]]}


def _with_places(messages: Sequence[Message], number: int, word: str | None) -> list[Message]:
    """Return the messages with places for images: where the word stands, or else in front of the user's first one."""
    if word is not None and any(word in text for text in map(_text, messages)):
        return [_split(message, word) for message in messages]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    content = messages[first]["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    shown_first = {**messages[first], "content": [*(dict(IMAGE) for _ in range(number)), *parts]}
    return [*messages[:first], shown_first, *messages[first + 1 :]]


def _text(message: Message) -> str:
    return message["content"] if isinstance(message["content"], str) else ""


def _split(message: Message, word: str) -> Message:
    """Return a message with a place for an image at each word; white space around the word goes with it."""
    if word not in _text(message):
        return message
    parts: list[Any] = []
    for i, piece in enumerate(message["content"].split(word)):
        parts += [dict(IMAGE)] if i else []
        parts += [{"type": "text", "text": piece.strip("\n")}] if piece.strip() else []
    return {**message, "content": parts}


def checked(examples: Iterable[Example], field: str | None, origin: str) -> Iterator[Example]:
    """Yield examples; raise `DataError` at their end where a field was named for images and none has had one."""
    rows = seen = 0
    for example in examples:
        rows, seen = rows + 1, seen + bool(example.images)
        yield example
    if field is not None and rows and not seen:
        raise DataError(
            f"{origin}: no row has an image, expected some in the field `{field}`, which `data.task.images` names. "
            "Correct the name."
        )


def no_part(part: Any, where: str) -> DataError:
    """Return the error for a part of a message that is neither text nor an image."""
    return DataError(f"{where} expected text or images, got {shown(part)}. Sound and videos cannot be read.")
