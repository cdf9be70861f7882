"""The earlier name of the task of rows."""

from __future__ import annotations

from dataclasses import dataclass

from veto_pl.data.tasks.rows import Rows


@dataclass(frozen=True, kw_only=True)
class JsonLines(Rows):
    """The earlier name of `Rows`, from when it read JSON lines only.

    Raises:
        ConfigurationError: a number is negative, or a path or stop string empty.
        DataError: for a file that cannot be read, or a bad row, named as `file:row: field`.
    """
