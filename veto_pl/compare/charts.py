"""The pictures of a comparison: seeds and differences, curves, gradient norms, the frontier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from veto_pl.compare.cells import direction, has_interval, p_value, reading
from veto_pl.compare.results import Comparison, Contrast, Estimate, Trial
from veto_pl.report.bands import band_chart
from veto_pl.report.curve import Curve
from veto_pl.report.forest import Row, forest_plot
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.quantities import Quantity, in_order
from veto_pl.report.scatter import Cloud, Point, pareto_front, scatter

_NORM = "train/grad_norm"
_POINTS = 20_000  # of all curves on a page: each takes some 35 bytes
_NONE = Estimate(math.nan, math.nan, math.nan)


def forests_html(comparison: Comparison) -> str:
    """Two pictures per quantity: the values of all seeds, and their differences from the baseline."""
    figures = []
    for quantity in map(Quantity.of, comparison.quantities):
        values = [_values_row(comparison, i, quantity) for i in range(len(comparison.methods))]
        figures.append(forest_plot(values, quantity.title, quantity.unit))
        if any(column == quantity.column for _, column in comparison.contrasts):
            rows = [_differences_row(comparison, i, quantity) for i in range(len(comparison.methods))]
            title = f"{quantity.title}: differences"
            figures.append(forest_plot(rows, title, f"{quantity.unit}, minus {comparison.baseline}", zero=True))
    note = '<p class="note">Hollow marks: seeds. Filled mark and bar: mean and confidence interval.</p>\n'
    return note + _grid(figures, "charts pairs") if figures else ""


def curves_html(comparison: Comparison) -> str:
    """What was validated, over the steps; what was logged in training is folded."""
    curves = _curves(comparison)
    quantities = in_order(column for runs in curves.values() for columns in runs for column in columns)
    validated = [q for q in quantities if q.group == "validation"]
    others = [q for q in quantities if q not in validated and q.column != _NORM]
    if not quantities:
        return '<p class="note">No curves were logged.</p>\n'
    note = '<p class="note">Line: mean over seeds. Band: from the least to the greatest seed.</p>\n'
    points = min(120, max(40, _POINTS // (len(curves) * len(quantities))))
    folded = _grid([_bands(curves, quantity, points) for quantity in others])
    more = f"<details><summary>Curves of the training ({len(others)})</summary>\n{folded}</details>\n" if others else ""
    return note + _grid([_bands(curves, quantity, points) for quantity in validated]) + more


def gradient_norms_html(comparison: Comparison) -> str:
    """The norm over the steps on a logarithmic axis: the means of all methods together, then each method alone."""
    curves = _curves(comparison)
    if not any(_NORM in columns for runs in curves.values() for columns in runs):
        return '<p class="note">No gradient norms were logged.</p>\n'
    note = (
        "Logarithmic axis. Line: geometric mean over seeds. Band: from the least to the greatest value of any seed; "
        "left out where all methods share a picture."
    )
    quantity = Quantity.of(_NORM)
    series = _series(curves, quantity)
    alone = [method for method, own in series.items() if own]
    figures = [band_chart(series, "All methods", quantity.unit, log=True, band=False)] if len(alone) > 1 else []
    figures += [band_chart(series, name, quantity.unit, log=True, only=name) for name in alone]
    return f'<p class="note">{note}</p>\n{_grid(figures)}'


def diversity_html(comparison: Comparison) -> str:
    """pass@k over k, and reward against diversity; empty where there is neither."""
    return _pass_curves(comparison) + _frontier(comparison)


def _pass_curves(comparison: Comparison) -> str:
    """A picture for each evaluation with three k or more."""
    found: dict[str, dict[int, str]] = {}
    for column in {column for trial in comparison.trials for column in trial.values}:
        group, _, name = column.rpartition("/")
        if name.startswith("pass@") and name[5:].isdecimal():
            found.setdefault(group, {})[int(name[5:])] = column
    figures = []
    for group, columns in sorted(found.items()):
        if len(columns) > 2:
            series = {m: [_over_k(trial, columns) for trial in comparison.of(m)] for m in comparison.methods}
            title = f"pass@k, {group}" if group else "pass@k"
            figures.append(band_chart(series, title, "pass@k (%)", x_label="k"))
    return _grid(figures) if figures else ""


def _over_k(trial: Trial, columns: Mapping[int, str]) -> Curve:
    known = [(k, 100 * trial.values[column]) for k, column in sorted(columns.items()) if column in trial.values]
    return Curve(tuple(k for k, _ in known), tuple(value for _, value in known))


def _frontier(comparison: Comparison) -> str:
    if comparison.frontier is None:
        return ""
    x, y = map(Quantity.of, comparison.frontier)
    clouds = {method: _cloud(comparison, i, x, y) for i, method in enumerate(comparison.methods)}
    means = {name: cloud.mean for name, cloud in clouds.items() if cloud.mean}
    unknown = [quantity for quantity in (x, y) if not quantity.better]
    front = [] if unknown else pareto_front(means, (x.better, y.better))
    read = _undirected(unknown) if unknown else _directed(front)
    note = f'<p class="note">Hollow marks: seeds. Large marks: means. {read}</p>\n'
    return f'<figure class="frontier">{scatter(clouds, _against(y, x), x, y, front=front)}</figure>\n{note}'


def _against(y: Quantity, x: Quantity) -> str:
    up, across = map(_words, (y, x))
    return f"{up[:1].upper()}{up[1:]} against {across}"


def _words(quantity: Quantity) -> str:
    return quantity.unit.partition(" (")[0]


def _directed(front: Sequence[str]) -> str:
    names = ", ".join(f"<bdi>{escape(name)}</bdi>" for name in front) or "none"
    return f"Right and up is better. The dashed line is the Pareto front of the means: {names}."


def _undirected(unknown: Sequence[Quantity]) -> str:
    names = " or ".join(escape(_words(quantity)) for quantity in unknown)
    return f"Whether more {names} is better is not known, so no Pareto front is drawn."


def _values_row(comparison: Comparison, i: int, quantity: Quantity) -> Row:
    method = comparison.methods[i]
    estimate = comparison.estimates.get((method, quantity.column), _NONE)
    seeds = {seed: value * quantity.factor for seed, value in _values(comparison, method, quantity).items()}
    return Row(method, Mark(i), seeds, *_scaled(estimate, quantity), reading(estimate, quantity))


def _differences_row(comparison: Comparison, i: int, quantity: Quantity) -> Row:
    method = comparison.methods[i]
    contrast = comparison.contrasts.get((method, quantity.column))
    if method == comparison.baseline or contrast is None:
        return Row(method, Mark(i), {}, *_scaled(_NONE, quantity), "baseline" if method == comparison.baseline else "—")
    base, own = (_values(comparison, name, quantity) for name in (comparison.baseline, method))
    seeds = {seed: (value - base[seed]) * quantity.factor for seed, value in own.items() if seed in base}
    words = _difference(contrast, quantity)
    return Row(method, Mark(i), seeds, *_scaled(contrast.difference, quantity), words, bool(direction(contrast)))


def _difference(contrast: Contrast, quantity: Quantity) -> str:
    words = f"{direction(contrast)} {reading(contrast.difference, quantity, sign=True)}".strip()
    return f"{words}, {p_value(contrast)}" if has_interval(contrast.difference) else words


def _scaled(estimate: Estimate, quantity: Quantity) -> tuple[float, float, float]:
    return estimate.mean * quantity.factor, estimate.low * quantity.factor, estimate.high * quantity.factor


def _values(comparison: Comparison, method: str, quantity: Quantity) -> dict[int, float]:
    return {t.seed: t.values[quantity.column] for t in comparison.of(method) if quantity.column in t.values}


def _cloud(comparison: Comparison, i: int, x: Quantity, y: Quantity) -> Cloud:
    method = comparison.methods[i]
    across, up = _values(comparison, method, x), _values(comparison, method, y)
    seeds = {seed: (across[seed] * x.factor, up[seed] * y.factor) for seed in across if seed in up}
    finite = all(math.isfinite(value) for point in seeds.values() for value in point)
    return Cloud(Mark(i), seeds, _mean(list(seeds.values())) if seeds and finite else None)


def _mean(points: Sequence[Point]) -> Point:
    across, up = zip(*points, strict=True)
    return math.fsum(across) / len(points), math.fsum(up) / len(points)


def _curves(comparison: Comparison) -> dict[str, list[dict[str, Curve]]]:
    return {method: [trial.run.curves() for trial in comparison.of(method)] for method in comparison.methods}


def _series(curves: Mapping[str, Sequence[Mapping[str, Curve]]], quantity: Quantity) -> dict[str, list[Curve]]:
    return {
        method: [columns[quantity.column].scaled(quantity.factor) for columns in runs if quantity.column in columns]
        for method, runs in curves.items()
    }


def _bands(curves: Mapping[str, Sequence[Mapping[str, Curve]]], quantity: Quantity, points: int) -> str:
    return band_chart(_series(curves, quantity), quantity.title, quantity.unit, points=points)


def _grid(figures: Sequence[str], kind: str = "charts") -> str:
    inner = "".join(f"<figure>{figure}</figure>\n" for figure in figures)
    return f'<div class="{kind}">\n{inner}</div>\n'
