"""Files of JSON lines that grow while a run goes on, whatever the disk takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from veto_pl.exceptions import DataError
from veto_pl.storage.atomic import append, bring_to_disk
from veto_pl.storage.going_on import warn_if_unwritten


class WaitingLines:
    """A file of JSON lines that grows; lines that the disk refuses wait until it takes them.

    Args:
        path: the file; its folder is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, or keep them in memory if the disk refuses."""
        self._waiting += [json.dumps(row).encode() + b"\n" for row in rows]
        self.flush()

    def flush(self) -> None:
        """Write the waiting rows, all of them or none."""
        if not self._waiting:
            return
        with warn_if_unwritten(self.path):
            self._write()

    def position(self) -> int:
        """Return the number of rows in the file and of those that wait."""
        written = self.path.read_bytes().count(b"\n") if self.path.is_file() else 0
        return written + len(self._waiting)

    def cut(self, rows: int) -> None:
        """Keep the first `rows` rows of the file, without an incomplete one; remove a file that is then empty."""
        self._waiting = []
        if not self.path.is_file():
            return
        with warn_if_unwritten(self.path, "keeps the rows that it had"):
            with self.path.open("r+b") as file:  # needs no room, which writing the rows anew would
                kept = sum(map(len, takewhile(lambda line: line.endswith(b"\n"), islice(file, rows))))
                file.truncate(kept)
            if not kept:
                self.path.unlink()

    def bring_to_disk(self) -> None:
        """Write the waiting rows, and return when the file is on the disk."""
        self.flush()
        bring_to_disk(self.path)

    def finish(self) -> None:
        """Write the waiting rows.

        Raises:
            DataError: the disk still refuses it.
        """
        try:
            self._write()
        except OSError as error:
            raise DataError(
                f"{self.path} could not be written: {error}. {len(self._waiting)} rows are lost. Make room, and run "
                "the command again."
            ) from error

    def _write(self) -> None:
        if self._waiting:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, b"".join(self._waiting))
            self._waiting = []


_SHARED: WeakValueDictionary[Path, WaitingLines] = WeakValueDictionary()


def shared_lines(path: Path) -> WaitingLines:
    """Return the `WaitingLines` of a file, the same object for all callers while one of them holds it."""
    return _SHARED.setdefault(path.absolute(), WaitingLines(path))
