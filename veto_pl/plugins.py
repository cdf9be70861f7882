"""Third-party modules, and what is available behind each seam.

A package announces a module in the entry-point group `veto_pl.plugins`; importing the module registers its classes:

    [project.entry-points."veto_pl.plugins"]
    hellinger = "my_package.hellinger"
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from veto_pl.exceptions import VetoError

Seam = TypeVar("Seam")

GROUP = "veto_pl.plugins"
BUILT_IN = (
    "veto_pl.parts.advantages",
    "veto_pl.parts.contexts",
    "veto_pl.parts.own_template",
    "veto_pl.parts.panels",
    "veto_pl.data",
    "veto_pl.parts.divergences",
    "veto_pl.environments",
    "veto_pl.metrics",
    "veto_pl.models",
    "veto_pl.objectives",
    "veto_pl.rollouts",
    "veto_pl.parts.schedules",
    "veto_pl.parts.supports",
    "veto_pl.parts.targets",
    "veto_pl.parts.weightings",
    "veto_pl.parts.without_images",
    "veto_pl.parts.wrong_peer",
)


class PluginError(VetoError, ImportError):
    """A plug-in's module cannot be imported; the message names the entry point."""


def load_plugins() -> None:
    """Import the package's own modules and every module of the entry-point group.

    Raises:
        PluginError: a module fails to import. The environment variable `VETO_PL_SKIP_PLUGINS` names, separated by
            commas, entry points to leave out.
    """
    for module in BUILT_IN:
        importlib.import_module(module)
    for entry in announced(GROUP):
        load(entry)


def announced(group: str) -> list[EntryPoint]:
    """Return the entry points of a group that are not to be left out."""
    skipped = set(os.environ.get("VETO_PL_SKIP_PLUGINS", "").split(","))
    return [entry for entry in entry_points(group=group) if entry.name not in skipped]


def load(entry: EntryPoint) -> Any:
    """Import what an entry point names; raise `PluginError` where that fails."""
    try:
        return entry.load() if entry.attr else importlib.import_module(entry.module)
    except Exception as error:
        raise refused(entry, f"failed to import: {error!r}") from error


def refused(entry: EntryPoint, fault: str) -> PluginError:
    """Return the error that names an entry point and what is wrong with it."""
    return PluginError(
        f"The plug-in `{entry.name}` ({entry.value}) {fault}. Repair it, uninstall it, or set the environment variable "
        f"VETO_PL_SKIP_PLUGINS={entry.name}."
    )


def available(seam: type[Seam]) -> list[type[Seam]]:
    """Return the concrete, public subclasses of a seam that have been imported, by name."""
    found = {cls for cls in _subclasses(seam) if not inspect.isabstract(cls) and not cls.__name__.startswith("_")}
    return sorted(found, key=lambda cls: (cls.__name__, cls.__module__))


def summary(documented: object) -> str:
    """Return the first line of a docstring, without mark-up."""
    return first_line(inspect.getdoc(documented) or "")


def first_line(docstring: str) -> str:
    """Return the first line of a docstring's text, without mark-up."""
    return re.sub(r":math:`(.*?)`", r"\1", docstring.partition("\n")[0]).replace("`", "")


def paper(cls: type) -> str:
    """Return the arXiv identifier that a class's docstring refers to, or an empty string."""
    return paper_in(cls.__doc__)


def paper_in(docstring: str | None) -> str:
    """Return the arXiv identifier that a docstring refers to, or an empty string."""
    _, _, references = (docstring or "").partition("References:")
    match = re.search(r"arXiv (\d{4}\.\d{4,5})", references)
    return match.group(1) if match else ""


def _subclasses(cls: type[Seam]) -> Iterator[type[Seam]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def find_classes_here() -> None:
    """Let class paths name modules of the current folder, which an installed command would not find.

    The folder comes last, so that no file in it takes the place of a library; where Python was told not to look there
    (`-P`, `PYTHONSAFEPATH`), it stays out.
    """
    here = str(Path.cwd())
    if not getattr(sys.flags, "safe_path", False) and here not in sys.path:
        sys.path.append(here)
