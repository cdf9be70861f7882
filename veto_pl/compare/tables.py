"""The tables of a comparison: what the tests say, and what the runs took."""

from __future__ import annotations

import math

from veto_pl.compare.cells import direction, has_interval, key, mean_cost, p_value, reading
from veto_pl.compare.results import Comparison
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.quantities import Quantity
from veto_pl.report.table import number


def results_html(comparison: Comparison) -> str:
    """One row per method: means with intervals, and below them the difference from the baseline."""
    quantities = [Quantity.of(name) for name in comparison.quantities]
    head = "".join(f'<th scope="col">{_column(quantity)}</th>' for quantity in quantities)
    rows = []
    for i, method in enumerate(comparison.methods):
        cells = "".join(f"<td>{_cell(comparison, method, quantity)}</td>" for quantity in quantities)
        rows.append(f'<tr class="m{i}">{_name(comparison, i)}{cells}</tr>\n')
    return _table("Results", head, rows) + f'<p class="note">{escape(key(comparison))}</p>\n'


def cost_html(comparison: Comparison) -> str:
    """One row per method: the mean over its finished runs."""
    head = "".join(f'<th scope="col">{text}</th>' for text in ("steps", "completion tokens", "training time", "runs"))
    rows = []
    for i, method in enumerate(comparison.methods):
        trials = comparison.of(method)
        steps, tokens = mean_cost(trials, lambda c: c.steps), mean_cost(trials, lambda c: c.tokens)
        seconds = mean_cost(trials, lambda c: c.seconds)
        cells = [*map(_number, (steps, tokens)), duration(seconds), f"{len(trials)} of {len(comparison.seeds)}"]
        rows.append(f'<tr class="m{i}">{_name(comparison, i)}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n')
    return _table("Cost", head, rows) + '<p class="note">Mean per run.</p>\n'


def duration(seconds: float | None) -> str:
    """Seconds in a unit that can be read.

    >>> duration(41.25), duration(600.0), duration(8100.0), duration(None)
    ('41.2 s', '10.0 min', '2.25 h', '—')
    """
    if seconds is None or not math.isfinite(seconds):
        return "—"
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds >= 2 * s), (1, "s"))
    return f"{number(seconds / size)} {unit}"


def _table(label: str, head: str, rows: list[str]) -> str:
    head = f'<thead><tr><th scope="col">method</th>{head}</tr></thead>'
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n<table class="results">\n'
        f"{head}\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n"
    )


def _name(comparison: Comparison, i: int) -> str:
    method = comparison.methods[i]
    baseline = ' <span class="note">baseline</span>' if method == comparison.baseline else ""
    return f'<th scope="row">{Mark(i).inline()} <bdi>{escape(method)}</bdi>{baseline}</th>'


def _column(quantity: Quantity) -> str:
    group = f'<br><span class="group">{escape(quantity.group)}</span>' if quantity.group else ""
    return f"{escape(quantity.unit)}{group}"


def _cell(comparison: Comparison, method: str, quantity: Quantity) -> str:
    estimate = comparison.estimates.get((method, quantity.column))
    mean, _, interval = reading(estimate, quantity).partition(" ")
    cell = f'<span class="mean">{mean}</span> <span class="interval">{interval}</span>'
    contrast = comparison.contrasts.get((method, quantity.column))
    if contrast is None or math.isnan(contrast.difference.mean):
        return cell
    sure = direction(contrast)
    words = f"{sure} {reading(contrast.difference, quantity, sign=True)}".strip()
    test = (
        f'<br><span class="difference">{escape(p_value(contrast))}</span>' if has_interval(contrast.difference) else ""
    )
    return f'{cell}<br><span class="difference{" sure" if sure else ""}">{words}</span>{test}'


def _number(value: float | None) -> str:
    return "—" if value is None else number(value)
