"""Lines of JSON Lines files, plain or gzipped, and checks of rows, whatever file they come from."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from veto_pl.exceptions import DataError
from veto_pl.seams import Example
from veto_pl.storage.paths import local_path

LONGEST_LINE = 2**26
"""Bytes of a row; more is no row but a file that is not JSON Lines, and would be read into memory as a whole."""


def to_example(row: Any, *, prompt: str, completion: str | None, where: str) -> Example:
    """Check one decoded row and name its fields; `where` opens the message of a `DataError`."""
    check_fields(row, where, **{name: TEXT for name in (prompt, completion) if name is not None})
    if not row[prompt].strip():
        raise DataError(f"{where}: field `{prompt}` expected a prompt that is not blank, got {shown(row[prompt])}.")
    return Example(row[prompt], None if completion is None else row[completion], row)


def check_fields(row: Any, where: str, /, **fields: Any) -> None:
    """Check that a decoded row has these fields, and that they are of these types, such as `list[str]`.

    Args:
        row: a row of a file.
        where: names the file and the row in messages.
        fields: the type of each field.

    Raises:
        DataError: a field is missing or holds something else.

    Example:
        >>> check_fields({"tests": ["a", 5]}, "rows.jsonl:3", tests=list[str])
        Traceback (most recent call last):
        veto_pl.exceptions.DataError: rows.jsonl:3: field `tests[1]` expected a string, got int 5.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {shown(row)}.")
    for name, kind in fields.items():
        _check_field(row, name, kind, where)


def _check_field(row: dict[str, Any], name: str, kind: Any, where: str) -> None:
    try:
        _of_type(kind).validate_python(row.get(name, _ABSENT), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = name + "".join(f"[{part}]" for part in fault["loc"] if isinstance(part, int))
        expected = re.sub("^Input should be |^Value error, ", "", fault["msg"]).replace("a valid ", "a ")
        given = f"a row without it; it has {listed(row)}" if name not in row else shown(fault["input"])
        way = _way_out(kind, row[name]) if name in row else ""
        raise DataError(f"{where}: field `{place}` expected {expected}, got {given}.{way}") from None


def _way_out(kind: Any, given: Any) -> str:
    """Return what to do where a text was expected and messages were given."""
    messages = isinstance(given, list) and bool(given) and all(isinstance(entry, dict) for entry in given)
    return " Messages are read by `data.task: Chat`, with `data.template: ChatTemplate`." if messages else ""


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"valid Unicode without a lone surrogate at {error.start}") from None
    return text


TEXT = Annotated[str, AfterValidator(_unicode)]
"""A string that can be written to a file."""
_ABSENT = object()


@lru_cache(maxsize=64)
def _of_type(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def lines(path: str) -> Iterator[bytes]:
    """Yield the lines as bytes, because text mode would also split at other line ends and lose the line of an error."""
    number = 0
    try:
        file = local_path(path)
        if file.exists() and not file.is_file():  # a pipe would wait for ever, a device would never end
            raise OSError("it is a folder, a pipe or a device")
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            while line := lines.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{path}:{number}: expected a row, got a line of more than {LONGEST_LINE} bytes.")
                yield line
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        where = f" behind line {number}" if number else ""
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{short(path)}: expected a readable JSON Lines file, got{where}: {reason}. Check the path and the file."
        ) from error


def parse(line: bytes, where: str) -> Any:
    """Return the object of a line; `where` opens the message of a `DataError`."""
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object, got invalid JSON ({error}).") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raise where a key stands twice, since it cannot be told which value is meant."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice")
    return row


def shown(value: object) -> str:
    """Return the type of a value and its beginning, for messages.

    Example:
        >>> shown(["a"])
        "list ['a']"
    """
    # Not the `repr` of the whole: a value may have gigabytes.
    text = repr(value[:60] if isinstance(value, str | list) else value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '...'}"


def listed(names: Iterable[str]) -> str:
    """Return names of fields, for messages; of many or long names only the beginning.

    Example:
        >>> listed(["prompt", "answer"])
        '`prompt`, `answer`'
    """
    text = ", ".join(f"`{name if len(name) <= 40 else name[:37] + '...'}`" for name in islice(names, 20))
    return text or "no fields"


def short(path: str) -> str:
    """Return a path for messages; of a long one the end."""
    printable = path.encode(errors="backslashreplace").decode()
    return printable if len(printable) <= 300 else f"...{printable[-297:]}"
