"""The examples of a file, a folder or a data set of the hub, made of its rows one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.jsonl import to_example
from veto_pl.data.row_formats import Placed, read_rows
from veto_pl.exceptions import DataError
from veto_pl.seams import Example

OnBadRow = Literal["error", "skip"]
Make = Callable[[Any, str], Iterable[Example]]
"""Makes the examples of a row; its place opens the message of a `DataError`."""


@dataclass(frozen=True)
class RowFile:
    """The examples of a file or a folder, read anew by every iteration.

    Args:
        path: the file, of one of the formats of `read_rows`, or a folder of such files; `~` is the home directory.
        make: makes the examples of a row.
        on_bad_row: `error` stops at the first bad row, `skip` leaves bad rows out and tells their number at the end.
        limit: stop after so many good rows.
        say: told how many rows were left out.
        rows: gives the rows in place of the file; `path` is then what they are called.

    Raises:
        DataError: while it is read, for an unreadable file, or `file:row: field ... expected ..., got ...` for a bad
            row.
    """

    path: str
    make: Make
    on_bad_row: OnBadRow = "error"
    limit: int | None = None
    say: Callable[[str], None] = rank_zero_warn
    rows: Callable[[], Iterable[Placed]] | None = None

    def __iter__(self) -> Iterator[Example]:
        good = bad = 0
        first: DataError | None = None
        for where, row in read_rows(self.path) if self.rows is None else self.rows():
            if good == self.limit:
                break
            try:
                examples = list(self.make(row(), where))
            except DataError as fault:
                if self.on_bad_row == "error":
                    raise DataError(f"{fault} Correct the row, or leave bad ones out by `on_bad_row: skip`.") from fault
                first, bad = first or fault, bad + 1
                continue
            good += 1
            yield from examples
        if bad:
            self.say(f"{self.path}: skipped {bad} of {bad + good} rows. The first: {first}")


def texts_of(prompt: str, completion: str | None) -> Make:
    """Return what makes an example of a row with a prompt and perhaps a completion, which have these names."""
    return partial(_texts_of, prompt=prompt, completion=completion)


def _texts_of(row: Any, where: str, *, prompt: str, completion: str | None) -> list[Example]:
    return [to_example(row, prompt=prompt, completion=completion, where=where)]


def read_examples(
    path: str, *, prompt: str, completion: str | None, on_bad_row: OnBadRow = "error", limit: int | None = None
) -> list[Example]:
    """Read the examples of a `RowFile` of prompts and completions into a list, at once."""
    return list(RowFile(path, texts_of(prompt, completion), on_bad_row, limit))
