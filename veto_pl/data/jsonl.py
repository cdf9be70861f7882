"""Rows from JSON Lines files, plain or gzipped, checked one by one."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.exceptions import DataError
from veto_pl.types import Example

OnBadRow = Literal["error", "skip"]


def read_examples(
    path: str, *, prompt: str, completion: str | None, on_bad_row: OnBadRow = "error", limit: int | None = None
) -> list[Example]:
    """Reads one example per non-blank line of a `.jsonl` or `.jsonl.gz` file (UTF-8).

    Args:
        path: the file; `~` stands for the home directory.
        prompt: the field that holds the prompt, a string that is not blank.
        completion: the field that holds the reference, a string that may be empty, or None for no references.
        on_bad_row: `error` stops at the first bad row, `skip` leaves bad rows out and warns once with their number.
        limit: stop after so many good rows.

    Raises:
        DataError: for an unreadable file, or `file:line: field ... expected ..., got ...` for a bad row.
    """
    examples: list[Example] = []
    faults: list[DataError] = []
    for number, line in enumerate(_lines(path), 1):
        if len(examples) == limit:
            break
        if not line.strip():
            continue
        try:
            where = f"{path}:{number}"
            examples.append(to_example(_parse(line, where), prompt=prompt, completion=completion, where=where))
        except DataError as fault:
            if on_bad_row == "error":
                raise
            faults.append(fault)
    if faults:
        rank_zero_warn(f"{path}: skipped {len(faults)} of {len(faults) + len(examples)} rows. The first: {faults[0]}")
    return examples


def to_example(row: Any, *, prompt: str, completion: str | None, where: str) -> Example:
    """Checks one decoded row and names its fields; `where` opens the message of a `DataError`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {_shown(row)}.")
    text = _text(row, prompt, where)
    if not text.strip():
        raise DataError(f"{where}: field `{prompt}` expected a prompt that is not blank, got {text!r}.")
    return Example(text, None if completion is None else _text(row, completion, where), row)


def _lines(path: str) -> Iterator[bytes]:
    """Bytes, because text mode would also split at other line ends and lose the line of a decoding error."""
    file = Path(path).expanduser()
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a readable JSON Lines file, got: {error}. Check the path.") from error


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object, got invalid JSON ({error}).") from error


def _text(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        available = ", ".join(f"`{name}`" for name in row) or "no fields"
        raise DataError(f"{where}: field `{field}` expected a string, got a row without it; it has {available}.")
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: field `{field}` expected a string, got {_shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: field `{field}` expected valid Unicode, got a lone surrogate ({error}).") from error
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '...'}"
