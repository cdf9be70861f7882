"""Tables of results for a page, a README and a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veto_pl.exceptions import ConfigurationError
from veto_pl.report.markup import escape, minus, printable

if TYPE_CHECKING:
    from rich.table import Table

Cell = str | float | None


def number(value: float) -> str:
    """Three significant digits; whole numbers and thousands in full.

    >>> number(0.5), number(58.04), number(12345.6), number(2e-5), number(7)
    ('0.500', '58.0', '12,346', '2.0e-5', '7')
    """
    return minus(_number(value))


def _number(value: float) -> str:
    if isinstance(value, int) or (math.isfinite(value) and 1000 <= abs(value) < 1e15):
        return f"{value:,.0f}"
    if not math.isfinite(value) or value == 0:
        return f"{value + 0.0:g}"  # 0 without a sign
    if abs(value) < 1e-3 or abs(value) >= 1000:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:#.3g}".rstrip(".")


def for_terminal(cell: str) -> str:
    """A number with a hyphen, for terminals whose encoding lacks the minus sign."""
    return cell.replace("\N{MINUS SIGN}", "-")


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

    def _lines(self) -> list[list[str]]:
        return [[name, *map(_cell, cells)] for name, cells in self.rows.items()]

    def markdown(self) -> str:
        """A GitHub-flavoured table.

        >>> print(ResultTable(["accuracy"], {"veto": [0.5]}).markdown(), end="")
        | run | accuracy |
        | :--- | ---: |
        | veto | 0.500 |
        """
        rule = [":---"] + ["---:"] * len(self.columns)
        lines = [[plain(text) for text in line] for line in [[self.label, *self.columns], *self._lines()]]
        return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])

    def html(self) -> str:
        """A `<table>` element, everything escaped."""
        head = "".join(f'<th scope="col">{escape(text)}</th>' for text in [self.label, *self.columns])
        body = "".join(
            f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>\n'
            for name, *cells in self._lines()
        )
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"

    def rich(self) -> Table:
        """A table for the terminal; markup in names and cells stays text."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column(Text(printable(self.label)))
        for column in self.columns:
            table.add_column(Text(printable(column)), justify="right")
        for name, *cells in self._lines():
            table.add_row(*(Text(printable(text)) for text in (name, *map(for_terminal, cells))))
        return table


def _cell(cell: Cell) -> str:
    if cell is None:
        return "—"
    return cell if isinstance(cell, str) else number(cell)


def plain(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    for character in "\\|`*_[]":
        text = text.replace(character, "\\" + character)
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")
