"""A comparison as markdown: one table, and the lines that belong to it."""

from __future__ import annotations

import math

from veto_pl.compare.cells import (
    direction,
    heading,
    key,
    mean_cost,
    missing_text,
    p_value,
    reading,
    search_text,
    skipped_text,
)
from veto_pl.compare.results import Comparison
from veto_pl.report.markup import printable
from veto_pl.report.quantities import Quantity
from veto_pl.report.table import Cell, ResultTable, plain


def markdown(comparison: Comparison) -> str:
    """One table with a row per method, and what was given to the runs, searched, and is missing.

    Returns:
        GitHub-flavoured markdown without a headline, ending in a line feed.
    """
    paragraphs = [
        missing_text(comparison),
        skipped_text(comparison),
        f"Budget of every run: {comparison.budget}. Seeds: {', '.join(map(str, comparison.seeds))}.",
    ]
    before = "".join(f"{plain(text)}\n\n" for text in paragraphs if text)
    lines = [f"{method}: {search_text(search)}." for method, search in comparison.searches.items()]
    lines += [f"{name}, failed: {why}" for name, why in comparison.failures.items()]
    after = "".join(f"- {plain(_cut(line))}\n" for line in lines)
    made = f"\n```bash\n{_fenced(comparison.command)}\n```\n" if comparison.command else ""
    return f"{before}{_table(comparison).markdown()}\n{plain(key(comparison))}\n{chr(10) if after else ''}{after}{made}"


def _table(comparison: Comparison) -> ResultTable:
    quantities = [Quantity.of(name) for name in comparison.quantities]
    columns = [*map(heading, quantities), "steps", "completion tokens", "training time (s)", "runs"]
    rows = {method: [_cell(comparison, method, q) for q in quantities] for method in comparison.methods}
    return ResultTable(columns, {name: cells + _cost(comparison, name) for name, cells in rows.items()}, "method")


def _cell(comparison: Comparison, method: str, quantity: Quantity) -> Cell:
    shown = reading(comparison.estimates.get((method, quantity.column)), quantity)
    contrast = comparison.contrasts.get((method, quantity.column))
    if contrast is None or shown == "—" or math.isnan(contrast.p):
        return f"{shown} {direction(contrast)}".strip()
    return ", ".join([f"{shown} {direction(contrast)}".strip(), p_value(contrast)])


def _cost(comparison: Comparison, method: str) -> list[Cell]:
    trials = comparison.of(method)
    parts = [mean_cost(trials, part) for part in (lambda c: c.steps, lambda c: c.tokens, lambda c: c.seconds)]
    return [*parts, f"{len(trials)} of {len(comparison.seeds)}"]


def _cut(text: str, limit: int = 500) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def _fenced(command: str) -> str:
    return "\n".join(printable(line) for line in command.split("\n") if "```" not in line)
