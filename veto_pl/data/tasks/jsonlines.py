"""The earlier name of the task of rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from veto_pl.data.example_files import split_files
from veto_pl.data.tasks.rows import Rows


@dataclass(frozen=True, kw_only=True)
class JsonLines(Rows):
    """The earlier name of `Rows`, from when it read JSON lines only.

    Raises:
        ConfigurationError: a number is negative, or a path or stop string empty.
        DataError: for a file that cannot be read, or a bad row, named as `file:row: field`.
    """

    @classmethod
    def examples(cls, folder: Path) -> tuple[JsonLines, ...]:
        return (cls(**split_files(folder, [{"prompt": word, "completion": word} for word in ("one", "two", "three")])),)
