"""Tables of rows in Arrow files that are named after what they were made of, memory-mapped and shared by processes.

Whoever comes first makes a table, under a lock that dies with its process, and everybody else reads it. A table appears
whole or not at all, and its checksum is compared whenever it is opened: one that is damaged is made anew.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.fingerprints import digest, file_digest
from veto_pl.storage.atomic import replacing

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS, _ABOUT = "rows.arrow", "about.json"
Notes = dict[str, Any]
Fill = Callable[[Notes], Iterable[pa.RecordBatch]]
"""Makes the batches of a table; what it leaves in the notes, plain values, is kept beside them."""


@dataclass(frozen=True)
class Table:
    """Rows and what their maker noted about them.

    Args:
        rows: read from the file as they are asked for.
        notes: plain values.
    """

    rows: Dataset
    notes: Mapping[str, Any]


def cache_folder() -> Path:
    """Return the folder `veto_pl` in the cache of `datasets`, which the variable `HF_DATASETS_CACHE` moves."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, "veto_pl")


def cached_table(key: str | None, schema: pa.Schema, fill: Fill) -> Table:
    """Return the table of that key from the cache, made if it is not there or damaged.

    Args:
        key: names the contents; None for rows that are not kept and live in the memory of this process.
        schema: the columns.
        fill: makes the rows.
    """
    if key is None:
        return _in_memory(schema, fill)
    folder = cache_folder() / key
    if (table := _read_intact(folder)) is not None:
        return table
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            return _read_intact(folder) or _make(folder, schema, fill)
    except OSError as error:
        rank_zero_warn(
            f"`{folder.parent}` cannot keep the rows ({error}), so they are held in memory, by every rank. "
            "Set HF_DATASETS_CACHE to a folder with room."
        )
        return _in_memory(schema, fill)


def _make(folder: Path, schema: pa.Schema, fill: Fill) -> Table:
    """Write a table, whole or not at all, in the place of one that is damaged; the caller holds the lock."""
    with replacing(folder) as new:
        new.mkdir()  # not a private folder: others may share the cache
        _write(new, schema, fill)
    return _open_table(folder)


def _in_memory(schema: pa.Schema, fill: Fill) -> Table:
    with tempfile.TemporaryDirectory(prefix="veto_pl-") as folder:
        _write(Path(folder), schema, fill)
        return _open_table(Path(folder), in_memory=True)


def _write(folder: Path, schema: pa.Schema, fill: Fill) -> None:
    notes: Notes = {}
    with pa.OSFile(str(folder / _ROWS), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in fill(notes):
            stream.write_batch(batch)
    about = json.dumps(notes)
    checksum = digest(file_digest(folder / _ROWS), about)
    (folder / _ABOUT).write_text(json.dumps({"checksum": checksum, "notes": about}), encoding="utf-8")


def _read_intact(folder: Path) -> Table | None:
    """Return the table of a folder, or None where it is not there or differs from its checksum."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        if digest(file_digest(folder / _ROWS), about["notes"]) == about["checksum"]:
            return _open_table(folder)
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        pass
    return None


def _open_table(folder: Path, *, in_memory: bool = False) -> Table:
    from datasets import Dataset

    notes = json.loads(json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["notes"])
    return Table(Dataset.from_file(str(folder / _ROWS), in_memory=in_memory), notes)
