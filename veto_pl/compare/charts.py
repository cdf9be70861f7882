"""The pictures of a comparison: seeds and differences, curves, gradient norms, the frontier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from veto_pl.charts import Cloud, Curve, Row, curve_chart, forest_plot, pareto_front, scatter
from veto_pl.compare.cells import difference, direction, p_value, reading
from veto_pl.compare.results import Comparison, Estimate, Trial
from veto_pl.report.columns import Quantity, in_order

_NORM = "train/grad_norm"
_POINTS = 20_000  # of all curves on a page: each takes some 35 bytes
_NONE = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Figures:
    """Draws a comparison; each property is a list of `<svg>` elements, empty where there is nothing to draw."""

    comparison: Comparison

    @property
    def forests(self) -> Iterator[str]:
        """Two pictures per quantity: the values of all seeds, and their differences from the baseline."""
        comparison = self.comparison
        for quantity in map(comparison.quantity, comparison.quantities):
            found = [value for method in comparison.methods for value in self._values(method, quantity).values()]
            if not any(map(math.isfinite, found)):
                continue
            values = [self._values_row(method, quantity) for method in comparison.methods]
            yield forest_plot(values, quantity.title, quantity.label)
            if any(column == quantity.column for _, column in comparison.contrasts):
                rows = [self._differences_row(method, quantity) for method in comparison.methods]
                label = f"{quantity.label}, minus {comparison.baseline}"
                yield forest_plot(rows, f"{quantity.title}: differences", label, zero=True)

    @property
    def validated(self) -> list[str]:
        """What was validated, over the steps."""
        return [self._bands(q) for q in self._drawn if q.group == "validation" and not self._is_constant(q)]

    @property
    def trained(self) -> list[str]:
        """What was logged in training, over the steps."""
        of = [q for q in self._drawn if q.group != "validation" and not q.is_time and q.column != _NORM]
        return [self._bands(q) for q in of if not self._is_constant(q)]

    @property
    def times(self) -> list[str]:
        """How long everything took, over the steps."""
        return [self._bands(q) for q in self._drawn if q.is_time]

    @property
    def constants(self) -> list[str]:
        """What stayed as it was in each run."""
        return [self._bands(q) for q in self._drawn if self._is_constant(q) and not q.is_time and q.column != _NORM]

    @property
    def norms(self) -> list[str]:
        """Gradient norms on a logarithmic axis: the means of all methods together, then each method alone."""
        quantity = self.comparison.quantity(_NORM)
        series = self._series(quantity)
        alone = [method for method, own in series.items() if own]
        shared = [curve_chart(series, "All methods", quantity.label, log=True, band=False)] if len(alone) > 1 else []
        return shared + [curve_chart(series, name, quantity.label, log=True, only=name) for name in alone]

    @property
    def pass_curves(self) -> Iterator[str]:
        """pass@k over k, for each evaluation with three k or more."""
        found: dict[str, dict[int, str]] = {}
        for column in {column for trial in self.comparison.trials for column in trial.values}:
            group, _, name = column.rpartition("/")
            if name.startswith("pass@") and name[5:].isdecimal():
                found.setdefault(group, {})[int(name[5:])] = column
        by_method = {method: self.comparison.of(method) for method in self.comparison.methods}
        for group, columns in sorted(found.items()):
            if len(columns) > 2:
                series = {method: [_over_k(trial, columns) for trial in trials] for method, trials in by_method.items()}
                yield curve_chart(series, f"pass@k, {group}" if group else "pass@k", "pass@k (%)", x_label="k")

    @cached_property
    def ends(self) -> tuple[Quantity, Quantity]:
        """The two quantities of the frontier."""
        assert self.comparison.frontier is not None, "only asked for where there is a frontier"
        x, y = map(self.comparison.quantity, self.comparison.frontier)
        return x, y

    @cached_property
    def clouds(self) -> dict[str, Cloud]:
        """Method -> its seeds, by the two quantities of the frontier."""
        return {method: self._cloud(method, *self.ends) for method in self.comparison.methods}

    @property
    def front(self) -> list[str]:
        """The methods that none beats in both quantities; none where a direction is not known."""
        x, y = self.ends
        means = {name: cloud.mean for name, cloud in self.clouds.items() if cloud.mean}
        return pareto_front(means, (x.better, y.better)) if x.better and y.better else []

    @property
    def frontier(self) -> str:
        """Reward against diversity."""
        x, y = self.ends
        title = f"{y.words[:1].upper()}{y.words[1:]} against {x.words}"
        better = (x.better, y.better)
        return scatter(self.clouds, title, (x.heading, y.heading), better=better, front=self.front)

    def _values_row(self, method: str, quantity: Quantity) -> Row:
        of = self.comparison.estimates.get((method, quantity.column), _NONE)
        seeds = {seed: value * quantity.factor for seed, value in self._values(method, quantity).items()}
        return Row(method, seeds, *_scaled(of, quantity), reading(of, quantity))

    def _differences_row(self, method: str, quantity: Quantity) -> Row:
        comparison = self.comparison
        of = comparison.contrasts.get((method, quantity.column))
        if method == comparison.baseline or of is None:
            return Row(method, {}, *_scaled(_NONE, quantity), "baseline" if method == comparison.baseline else "—")
        base, own = (self._values(name, quantity) for name in (comparison.baseline, method))
        seeds = {seed: (value - base[seed]) * quantity.factor for seed, value in own.items() if seed in base}
        words = ", ".join(filter(None, (difference(of, quantity, comparison.confidence), p_value(of))))
        stressed = bool(direction(of, comparison.confidence))
        return Row(method, seeds, *_scaled(of.difference, quantity), words, stressed)

    def _values(self, method: str, quantity: Quantity) -> dict[int, float]:
        trials = self.comparison.of(method)
        return {trial.seed: trial.values[quantity.column] for trial in trials if quantity.column in trial.values}

    def _cloud(self, method: str, x: Quantity, y: Quantity) -> Cloud:
        across, up = self._values(method, x), self._values(method, y)
        seeds = {seed: (across[seed] * x.factor, up[seed] * y.factor) for seed in across if seed in up}
        if not seeds or not all(math.isfinite(value) for point in seeds.values() for value in point):
            return Cloud(seeds, None)
        first, second = (math.fsum(values) / len(seeds) for values in zip(*seeds.values(), strict=True))
        return Cloud(seeds, (first, second))

    @cached_property
    def _curves(self) -> dict[str, list[dict[str, Curve]]]:
        comparison = self.comparison
        return {method: [trial.run.curves() for trial in comparison.of(method)] for method in comparison.methods}

    @cached_property
    def _logged(self) -> list[Quantity]:
        columns = (column for runs in self._curves.values() for own in runs for column in own)
        return in_order(columns, self.comparison.shown)

    @cached_property
    def _drawn(self) -> list[Quantity]:
        """What was logged, but for that of which no run has a value that can be drawn."""
        every = {q: [curve for own in self._series(q).values() for curve in own] for q in self._logged}
        return [quantity for quantity, curves in every.items() if not all(curve.is_empty for curve in curves)]

    def _is_constant(self, quantity: Quantity) -> bool:
        curves = [curve for own in self._series(quantity).values() for curve in own if not curve.is_empty]
        return all(curve.is_constant for curve in curves)

    def _series(self, quantity: Quantity) -> dict[str, list[Curve]]:
        column, factor = quantity.column, quantity.factor
        return {
            method: [columns[column].scaled(factor) for columns in runs if column in columns]
            for method, runs in self._curves.items()
        }

    def _bands(self, quantity: Quantity) -> str:
        points = min(120, max(40, _POINTS // (len(self._curves) * len(self._logged))))
        return curve_chart(self._series(quantity), quantity.title, quantity.label, points=points)


def _over_k(trial: Trial, columns: Mapping[int, str]) -> Curve:
    known = [(k, 100 * trial.values[column]) for k, column in sorted(columns.items()) if column in trial.values]
    return Curve(tuple(k for k, _ in known), tuple(value for _, value in known))


def _scaled(estimate: Estimate, quantity: Quantity) -> tuple[float, float, float]:
    return estimate.mean * quantity.factor, estimate.low * quantity.factor, estimate.high * quantity.factor
