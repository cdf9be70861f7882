"""Examples that are read from an Arrow table as they are asked for, or one by one from a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, overload

import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.fingerprints import digest, files_state
from veto_pl.data.row_store import Notes, Table, cached_table
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Conversation, Example, Picture

Say = Callable[[str], None]
_TEXT = pa.large_string()
_SCHEMA = pa.schema(
    {"prompt": _TEXT, "completion": _TEXT, "alternatives": pa.list_(_TEXT), "row": _TEXT, "beside": _TEXT}
)
"""The last two are JSON: the row, and what `told_beside` tells with the images, if there are any."""
BATCH = 1000
"""Rows that are written, read or tokenised together."""
_BATCH_CHARACTERS = 2**24


@dataclass(frozen=True, eq=False)
class StoredExamples(Sequence[Example]):
    """A lazy list of examples, equal to a list of the same ones.

    Args:
        rows: an Arrow table, in memory or memory-mapped.
        origin: where the rows come from, for messages.
        key: names the contents; None where that is not known.
        remark: why there are fewer rows than somebody may expect, for messages.
        pictures: names the contents of their image files, as far as size and time of change tell; None where no row has
            an image.
    """

    rows: Any
    origin: str
    key: str | None = None
    remark: str = ""
    pictures: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> StoredExamples: ...

    def __getitem__(self, index: int | slice) -> Example | StoredExamples:
        if not isinstance(index, slice):
            return _example(*self.rows[range(len(self))[index]].values())
        places = range(len(self))[index]
        if places == range(len(self)):
            return self
        key = self.key and digest(self.key, str(places))
        return replace(self, rows=self.rows.select(places), key=key)

    def __iter__(self) -> Iterator[Example]:
        return chain.from_iterable(self.at(part) for part in batches(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Example.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def at(self, places: Sequence[int]) -> list[Example]:
        """Return the examples at some places, read together."""
        columns = self.rows[places]  # a range is read as a slice
        return [_example(*values) for values in zip(*columns.values(), strict=True)]


def batches(length: int) -> Iterator[range]:
    """Yield the places of so many rows, in batches.

    Example:
        >>> list(batches(1500))
        [range(0, 1000), range(1000, 1500)]
    """
    return (range(start, min(start + BATCH, length)) for start in range(0, length, BATCH))


def rows_at(examples: Sequence[Example], places: Sequence[int]) -> list[Example]:
    """Return the examples at some places, read together where they can be."""
    together: Callable[[Sequence[int]], list[Example]] | None = getattr(examples, "at", None)
    return [examples[place] for place in places] if together is None else together(places)


def stored(
    read: Callable[[Say], Iterable[Example]],
    *,
    origin: str,
    key: Callable[[], str | None] = lambda: None,
    place: str = "",
) -> StoredExamples:
    """Read examples once and keep them in an Arrow table.

    Args:
        read: gives the examples in order, and tells its argument what a user should know about them; values of their
            rows that JSON does not have, such as dates, become their text.
        origin: where the examples come from, for messages.
        key: names their contents, as `source_key` does, and is asked before and after reading; None keeps them for this
            process only.
        place: where they lie: equal rows elsewhere may have other images.

    Raises:
        DataError: the contents changed while they were read.
    """
    name = key()

    def fill(notes: Notes) -> Iterator[pa.RecordBatch]:
        said: list[str] = notes.setdefault("said", [])
        columns: tuple[list[Any], ...] = ([], [], [], [], [])
        characters = 0
        for example in read(said.append):
            row = json.dumps(dict(example.row), default=str)
            beside = json.dumps(told) if any(told := told_beside(example)) else None
            if example.images:
                notes["place"] = place
                notes.setdefault("images", []).extend(one.path for one in example.images if one.path)
            values = (example.prompt, example.completion, list(example.alternatives), row, beside)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            characters += len(example.prompt) + len(row) + len(beside or "")
            if len(columns[0]) == BATCH or characters > _BATCH_CHARACTERS:
                yield _batch(columns)
                columns, characters = ([], [], [], [], []), 0
        if columns[0]:
            yield _batch(columns)
        if key() != name:
            raise DataError(f"{origin}: changed while it was read. Start again when it is complete.")

    table = cached_table(name, _SCHEMA, fill)
    if name is not None and table.notes.get("place", place) != place:
        own = digest(name, place)
        table = cached_table(own, _SCHEMA, fill)
        return _stored(table, origin, own)
    return _stored(table, origin, name)


def _stored(table: Table, origin: str, key: str | None) -> StoredExamples:
    for message in table.notes["said"]:
        rank_zero_warn(message)
    pictures = files_state(table.notes["images"]) if "images" in table.notes else None
    return StoredExamples(table.rows, origin, key, " ".join(table.notes["said"]), pictures)


@dataclass(frozen=True)
class ExampleStream:
    """Examples without a known number, which are read as they are needed, and again in every epoch.

    Args:
        read: begins anew and gives one example after the other.
        origin: where they come from, for messages.
        fingerprint: names their contents, so that a resumed run can tell whether they have changed; "" for unknown.
    """

    read: Callable[[], Iterable[Example]]
    origin: str = "The stream of the task"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not callable(self.read):
            raise ConfigurationError(
                f"`ExampleStream.read` expected a function that begins anew in each epoch, got {type(self.read)}."
            )

    def __iter__(self) -> Iterator[Example]:
        return iter(self.read())


def _batch(columns: tuple[list[Any], ...]) -> pa.RecordBatch:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _example(prompt: str, completion: str | None, alternatives: list[str], row: str, beside: str | None) -> Example:
    example = Example(prompt, completion, json.loads(row), tuple(alternatives))
    if beside is None:
        return example
    said, source, teacher, *images = json.loads(beside)
    conversation = None if said is None else Conversation.from_plain(said)
    pictures = tuple(map(Picture.from_plain, *images)) if images else ()
    return replace(example, conversation=conversation, source=source, teacher=teacher, images=pictures)


def told_beside(example: Example) -> list[Any]:
    """Return what few examples have, as plain values: a conversation, the names of a data set and of a teacher, and
    behind them images, if there are any.
    """
    said = example.conversation
    told = [None if said is None else said.plain(), example.source, example.teacher]
    return [*told, [one.plain() for one in example.images]] if example.images else told
