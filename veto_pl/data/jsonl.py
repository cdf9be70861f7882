"""Rows from JSON Lines files, plain or gzipped, checked one by one."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from pydantic import AfterValidator, TypeAdapter, ValidationError

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example
from veto_pl.storage.paths import local_path

OnBadRow = Literal["error", "skip"]
_OTHER_FORMATS = {
    ".parquet": "from_parquet",
    ".csv": "from_csv",
    ".tsv": "from_csv",
    ".arrow": "from_file",
    ".txt": "from_text",
}
"""How the library `datasets` reads files of other formats."""
LONGEST_LINE = 2**26
"""Bytes of a row; more is no row but a file that is not JSON Lines, and would be read into memory as a whole."""


@dataclass(frozen=True)
class JsonLinesFile:
    """The examples of a `.jsonl` or `.jsonl.gz` file (UTF-8), one per non-blank line, read anew by every iteration.

    Args:
        path: the file; `~` stands for the home directory.
        prompt: the field that holds the prompt, a string that is not blank.
        completion: the field that holds the reference, a string that may be empty, or None for no references.
        on_bad_row: `error` stops at the first bad row, `skip` leaves bad rows out and tells their number at the end.
        limit: stop after so many good rows.
        say: told how many rows were left out.

    Raises:
        DataError: while it is read, for an unreadable file, or `file:line: field ... expected ..., got ...` for a bad
            row.
    """

    path: str
    prompt: str
    completion: str | None
    on_bad_row: OnBadRow = "error"
    limit: int | None = None
    say: Callable[[str], None] = rank_zero_warn

    def __iter__(self) -> Iterator[Example]:
        good = bad = 0
        first: DataError | None = None
        for number, line in enumerate(_lines(self.path), 1):
            if good == self.limit:
                break
            if not line.strip():
                continue
            try:
                where = f"{self.path}:{number}"
                row = _parse(line, where)
                example = to_example(row, prompt=self.prompt, completion=self.completion, where=where)
            except DataError as fault:
                if self.on_bad_row == "error":
                    raise
                first, bad = first or fault, bad + 1
                continue
            good += 1
            yield example
        if bad:
            self.say(f"{self.path}: skipped {bad} of {bad + good} rows. The first: {first}")


def read_examples(
    path: str, *, prompt: str, completion: str | None, on_bad_row: OnBadRow = "error", limit: int | None = None
) -> list[Example]:
    """Read the examples of a `JsonLinesFile` into a list, at once."""
    return list(JsonLinesFile(path, prompt, completion, on_bad_row, limit))


def check_format(setting: str, path: str | None) -> None:
    """Refuse, by its name, a file of another format, with the way to turn it into JSON Lines.

    Raises:
        ConfigurationError: the name ends like that of a table, of columns or of plain text.
    """
    kind = _OTHER_FORMATS.get(local_path(path or "").suffix.lower())
    if kind is not None:
        raise ConfigurationError(
            f"`{setting}` expected a file of JSON Lines (`.jsonl`, `.jsonl.gz`), got {path}. Convert it once: "
            f"`datasets.Dataset.{kind}({path!r}).to_json('rows.jsonl')` in Python."
        )


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
        raise DataError(f"{where}: field `{place}` expected {expected}, got {given}.") from None


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


def _lines(path: str) -> Iterator[bytes]:
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
            f"{_short(path)}: expected a readable JSON Lines file, got{where}: {reason}. Check the path and the file."
        ) from error


def _parse(line: bytes, where: str) -> Any:
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


def _short(path: str) -> str:
    printable = path.encode(errors="backslashreplace").decode()
    return printable if len(printable) <= 300 else f"...{printable[-297:]}"
