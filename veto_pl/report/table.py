"""Tables of results for a page, a README and a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veto_pl.charts.text import cell, for_terminal, printable
from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

Cell = str | float | None


@dataclass(frozen=True)
class ResultTable:
    """Named rows of cells. Numbers are rounded when shown; None is shown as a dash.

    Args:
        columns: headings, without that of the names.
        rows: name -> one cell per column.
        label: heading of the names.

    Raises:
        ConfigurationError: if a row has another number of cells than there are columns.
    """

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    label: str = "run"

    def __post_init__(self) -> None:
        for name, cells in self.rows.items():
            if len(cells) != len(self.columns):
                expected = f"must have one cell per column ({len(self.columns)})"
                raise ConfigurationError(f"`ResultTable.rows[{name!r}]` {expected}, got {len(cells)}.")

    def lines(self) -> list[list[str]]:
        """Return the rows as text, each with its name first."""
        return [[name, *map(cell, cells)] for name, cells in self.rows.items()]

    def markdown(self) -> str:
        """Return a GitHub-flavoured table.

        >>> print(ResultTable(["accuracy"], {"veto": [0.5]}).markdown(), end="")
        | run | accuracy |
        | :--- | ---: |
        | veto | 0.500 |
        """
        rule = [":---"] + ["---:"] * len(self.columns)
        lines = [[plain(text) for text in line] for line in [[self.label, *self.columns], *self.lines()]]
        return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])

    def rich(self) -> Table:
        """Return a table for the terminal; markup in names and cells stays text."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column(Text(printable(self.label)))
        for column in self.columns:
            table.add_column(Text(printable(column)), justify="right")
        for name, *cells in self.lines():
            table.add_row(*(Text(printable(text)) for text in (name, *map(for_terminal, cells))))
        return table


def plain(text: str) -> str:
    """Return text that markdown shows as it is, on one line."""
    for character in "\\|`*_[]":
        text = text.replace(character, "\\" + character)
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")
