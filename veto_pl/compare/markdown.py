"""A comparison as markdown: one table, and the lines that belong to it."""

from __future__ import annotations

from veto_pl.charts.text import printable
from veto_pl.compare.cells import (
    direction,
    key,
    mean_costs,
    missing_text,
    p_value,
    reading,
    search_text,
    skipped_text,
)
from veto_pl.compare.results import Comparison
from veto_pl.report.columns import Quantity
from veto_pl.report.table import Cell, ResultTable, plain


def markdown(comparison: Comparison) -> str:
    """Return a table with a row per method, and lines on the budget, the search and the missing runs.

    Returns:
        GitHub-flavoured markdown without a headline, ending in a line feed.
    """
    paragraphs = [
        missing_text(comparison),
        skipped_text(comparison),
        f"Budget of every run: {comparison.budget}. Seeds: {', '.join(map(str, comparison.seeds))}.",
    ]
    before = "".join(f"{plain(text)}\n\n" for text in paragraphs if text)
    searches = comparison.searches.items()
    lines = [f"{method}: {search_text(search, comparison.quantity(search.metric))}." for method, search in searches]
    lines += [f"{name}, failed: {why}" for name, why in comparison.failures.items()]
    after = "".join(f"- {plain(_cut(line))}\n" for line in lines)
    made = f"\n```bash\n{_fenced(comparison.command)}\n```\n" if comparison.command else ""
    return f"{before}{_table(comparison).markdown()}\n{plain(key(comparison))}\n{chr(10) if after else ''}{after}{made}"


def _table(comparison: Comparison) -> ResultTable:
    quantities = [comparison.quantity(name) for name in comparison.quantities]
    headings = [quantity.heading for quantity in quantities]
    rows: dict[str, list[Cell]] = {}
    for method in comparison.methods:
        trials = comparison.of(method)
        finished = f"{len(trials)} of {len(comparison.seeds)}"
        steps, tokens, turns, seconds = mean_costs(trials)
        costs = [steps, tokens, *([turns] if comparison.plays else []), seconds]
        rows[method] = [*(_cell(comparison, method, q) for q in quantities), *costs, finished]
    costs_of = ["steps", comparison.counted, *(["turns"] if comparison.plays else []), "training time (s)"]
    return ResultTable([*headings, *costs_of, "runs"], rows, "method")


def _cell(comparison: Comparison, method: str, quantity: Quantity) -> Cell:
    shown = reading(comparison.estimates.get((method, quantity.column)), quantity)
    contrast = comparison.contrasts.get((method, quantity.column))
    if contrast is None:
        return shown
    marked = f"{shown} {direction(contrast, comparison.confidence)}".strip()
    return ", ".join(filter(None, (marked, p_value(contrast))))


def _cut(text: str, limit: int = 500) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def _fenced(command: str) -> str:
    return "\n".join(printable(line) for line in command.split("\n") if "```" not in line)
