"""`veto-pl list`: what is available behind each seam."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from veto_pl.cli.class_index import LISTED, PACKAGE, ClassIndex
from veto_pl.exceptions import ConfigurationError
from veto_pl.plugins import GROUP, announced, first_line, load_plugins, paper, paper_in, summary

Row = tuple[str, str, str, str]
"""Name, paper, summary and module of a class."""


def print_listing(names: Sequence[str]) -> None:
    """Print the tables of the named seams, or of all of them.

    Nothing is imported where no other package has announced parts.

    Raises:
        ConfigurationError: there is no such seam.
    """
    if unknown := [name for name in names if name not in LISTED]:
        raise ConfigurationError(f"There is no seam `{unknown[0]}`. The seams are: {', '.join(LISTED)}.")
    rows_of = imported_rows if announced(GROUP) else source_rows(ClassIndex())
    console = Console(width=None if Console().is_terminal else 160)
    for name in names or LISTED:
        console.print(_table(name, rows_of(name)))
    if not names:
        console.print(f"Abstract base classes: {PACKAGE / 'seams' / '__init__.py'}", soft_wrap=True)


def source_rows(index: ClassIndex) -> Callable[[str], list[Row]]:
    """Return what gives the rows of a seam by the source of the package."""

    def rows(name: str) -> list[Row]:
        found = [one for base in LISTED[name] for one in index.of_seam(base)]
        return [(one.name, paper_in(one.own_doc), first_line(index.doc(one)), one.module) for one in found]

    return rows


def imported_rows(name: str) -> list[Row]:
    """Return the rows of a seam, with those of other packages; everything is imported for it."""
    from veto_pl.cli.seam_classes import listed
    from veto_pl.plugins import available

    load_plugins()
    found: Iterable[type[Any]] = [cls for seam in listed(name) for cls in available(seam)]
    return [(cls.__name__, paper(cls), summary(cls), cls.__module__) for cls in found]


def _table(name: str, rows: Iterable[Row]) -> Table:
    table = Table("name", "paper", "summary", "module", title=name, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
