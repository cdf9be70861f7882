"""`veto-pl list`: what is available behind each seam."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from veto_pl import seams
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.plugins import available, load_plugins, paper, summary

SEAMS: dict[str, tuple[type[Any], ...]] = {
    "objectives": (seams.Objective,),
    "divergences": (seams.Divergence,),
    "targets": (seams.Target,),
    "schedules": (seams.Schedule,),
    "rollouts": (seams.RolloutSource,),
    "engines": (seams.Engine,),
    "contexts": (seams.TeacherContext,),
    "supports": (seams.Support,),
    "weightings": (seams.TokenWeighting,),
    "advantages": (seams.Advantage,),
    "tasks": (seams.Task,),
    "templates": (seams.Template,),
    "rewards": (seams.Reward,),
    "judges": (seams.Judge,),
    "models": (seams.ModelSource,),
    "tokenizers": (seams.TokenizerSource,),
    "metrics": (CompletionMetric, TokenMetric, MetricFamily),
}


def listing(name: str) -> Table:
    """Return a table of the classes of one seam: name, paper, summary and module.

    Raises:
        ConfigurationError: there is no such seam.
    """
    if name not in SEAMS:
        raise ConfigurationError(f"There is no seam `{name}`. The seams are: {', '.join(SEAMS)}.")
    table = Table("name", "paper", "summary", "module", title=name, title_justify="left")
    for seam in SEAMS[name]:
        for cls in available(seam):
            table.add_row(cls.__name__, paper(cls), summary(cls), cls.__module__)
    return table


def print_listing(names: Sequence[str]) -> None:
    """Print the tables of the named seams, or of all of them."""
    load_plugins()
    console = Console(width=None if Console().is_terminal else 160)
    for name in names or SEAMS:
        console.print(listing(name))
    if not names:
        console.print(f"Abstract base classes: {inspect.getsourcefile(seams)}", soft_wrap=True)
