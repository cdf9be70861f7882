"""Rows of files of all formats, one by one, each with the name of its place; a folder stands for the files in it."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from veto_pl.data.jsonl import LONGEST_LINE, lines, listed, parse, short
from veto_pl.exceptions import DataError
from veto_pl.storage.paths import local_path

Placed = tuple[str, Callable[[], Any]]
"""The place of a row, such as `rows.jsonl:3`, and a function that gives it, or raises `DataError` for a bad one."""
_BATCH = 1000


def files_of(path: str) -> list[str]:
    """Return the file of a path, or the files of a folder by their names, those of its folders included.

    Files of other formats and hidden ones are no rows; `.json` files are where there are no others, since data sets
    keep their descriptions in such files.

    Raises:
        DataError: a folder holds no rows.
    """
    try:
        folder = local_path(path)
        if not folder.is_dir():
            return [path]
    except (OSError, ValueError, RuntimeError):  # a name that no file can have: reading will say so
        return [path]
    found = sorted(file for file in folder.rglob("*") if file.is_file() and not _is_hidden(file, folder))
    kinds = [(file, _kind(file)) for file in found]
    rows = [str(file) for file, kind in kinds if kind not in ("", ".json")]
    if not (rows := rows or [str(file) for file, kind in kinds if kind == ".json"]):
        raise DataError(f"{short(path)}: expected files of rows, got a folder with none. They end with {_known()}.")
    return rows


def read_rows(path: str) -> Iterator[Placed]:
    """Yield the rows of a file, or of all files of a folder, with their places.

    The name tells the format: JSON lines, a JSON array of rows, Parquet, Arrow and Feather, or CSV and TSV with names
    in the first line, whose fields all are strings. `.gz` behind it, for text, is unpacked. Any other name is taken for
    JSON lines.

    Raises:
        DataError: a file cannot be read.
    """
    for file in files_of(path):
        yield from _READERS.get(_kind(Path(file)), _json_lines)(file)


def _json_lines(path: str) -> Iterator[Placed]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, partial(parse, line, where)


def _json(path: str) -> Iterator[Placed]:
    """Read an array of rows, as a whole; what does not begin as one is read as JSON lines."""
    try:
        with _opened(path) as text:
            first = next((line.lstrip()[:1] for line in text if line.strip()), "")
        if first != "[":
            yield from _json_lines(path)
            return
        with _opened(path) as text:
            rows = json.load(text)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise _unreadable(path, "a JSON array of rows", error) from error
    yield from ((f"{path}:{number}", partial(_given, row)) for number, row in enumerate(rows, 1))


def _parquet(path: str) -> Iterator[Placed]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(_regular(path)) as file:
            yield from _numbered(path, file.iter_batches(_BATCH))
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _unreadable(path, "a Parquet file", error) from error


def _arrow(path: str) -> Iterator[Placed]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(_regular(path))) as source:
            try:
                file = pa.ipc.open_file(source)
                batches: Iterator[Any] = (file.get_batch(i) for i in range(file.num_record_batches))
            except pa.ArrowInvalid:  # as a stream, which `datasets` writes
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            yield from _numbered(path, batches)
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _unreadable(path, "an Arrow file", error) from error


def _numbered(path: str, batches: Iterator[Any]) -> Iterator[Placed]:
    number = 0
    for batch in batches:
        for part in (batch.slice(start, _BATCH) for start in range(0, batch.num_rows, _BATCH)):
            for row in part.to_pylist():
                number += 1
                yield f"{path}:{number}", partial(_given, row)


def _table(path: str, delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(LONGEST_LINE)
    try:
        with _opened(path) as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            names = next(reader, [])
            number = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield f"{path}:{number}", partial(_record, names, cells, f"{path}:{number}")
                number = reader.line_num + 1
    except (OSError, EOFError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(path, "a table with names in its first line", error) from error


def _record(names: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(names):
        raise DataError(f"{where}: expected {len(names)} fields ({listed(names)}), got {len(cells)}.")
    return dict(zip(names, cells, strict=True))


def _given(row: Any) -> Any:
    return row


def _opened(path: str) -> io.TextIOWrapper:
    file = _regular(path)
    how: dict[str, Any] = {"encoding": "utf-8-sig", "newline": ""}
    raw: Any = gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")  # noqa: SIM115, the caller closes it
    return io.TextIOWrapper(raw, **how)


def _regular(path: str) -> Path:
    """Return the path of a file; raise `OSError` for a pipe, which would wait for ever, or a device."""
    file = local_path(path)
    if file.exists() and not file.is_file():
        raise OSError("it is a pipe or a device")
    return file


def _unreadable(path: str, expected: str, error: Exception) -> DataError:
    reason = str(getattr(error, "strerror", None) or error)[:300]
    return DataError(f"{short(path)}: expected {expected}, got: {reason}. Check the path and the file.")


_READERS: dict[str, Callable[[str], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".csv": partial(_table, delimiter=","),
    ".tsv": partial(_table, delimiter="\t"),
}


def _kind(file: Path) -> str:
    """Return the ending that tells a file's format; empty where it tells none."""
    name = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return name.suffix.lower() if name.suffix.lower() in _READERS else ""


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _known() -> str:
    return ", ".join(f"`{ending}`" for ending in _READERS)
