"""What the page and the markdown of a comparison say in the same words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from veto_pl.compare.results import Comparison, Contrast, Cost, Estimate, Search, Trial
from veto_pl.report.markup import minus
from veto_pl.report.quantities import Quantity
from veto_pl.report.table import number

FEW = 5
"""With fewer seeds no interval holds what it says, so that no difference is marked."""


def reading(estimate: Estimate | None, quantity: Quantity, *, sign: bool = False) -> str:
    """A mean with its interval in the quantity's unit, all with the same decimals; a dash where there is none.

    Args:
        estimate: in the unit that was logged.
        quantity: how it is shown.
        sign: whether a mean above 0 gets a plus: for differences.

    >>> reading(Estimate(0.5, 0.25, 0.75), Quantity.of("greedy/accuracy"))
    '50.0 [25.0, 75.0]'
    >>> reading(Estimate(0.02654, -0.0051, 0.0646), Quantity.of("greedy/accuracy"), sign=True)
    '+2.65 [−0.51, 6.46]'
    """
    if estimate is None or math.isnan(estimate.mean):
        return "—"
    values = [value * quantity.factor for value in (estimate.mean, estimate.low, estimate.high)]
    mean, low, high = map(minus, _aligned(values))
    plus = "+" if sign and values[0] > 0 else ""
    return f"{plus}{mean} [{low}, {high}]" if has_interval(estimate) else f"{plus}{mean}"


def has_interval(estimate: Estimate) -> bool:
    """Whether there were seeds enough for an interval."""
    return not (math.isnan(estimate.low) or math.isnan(estimate.high))


def direction(contrast: Contrast | None) -> str:
    """`▲` or `▼` where the interval of the difference lies above or below 0, else nothing; nothing of few seeds."""
    if contrast is None or contrast.seeds < FEW or not has_interval(contrast.difference):
        return ""
    return "▲" if contrast.difference.low > 0 else "▼" if contrast.difference.high < 0 else ""


def p_value(contrast: Contrast) -> str:
    """Two digits, or that it is below 0.001; a dash for NaN.

    >>> p_value(Contrast(Estimate(1.0, 0.5, 1.5), 0.0312, 5)), p_value(Contrast(Estimate(1.0, 0.5, 1.5), 0.3, 5))
    ('p = 0.031', 'p = 0.30')
    """
    if math.isnan(contrast.p):
        return "p —"
    return "p < 0.001" if contrast.p < 1e-3 else f"p = {contrast.p:#.2g}"


def heading(quantity: Quantity) -> str:
    """The unit and the evaluation, such as `accuracy (%), greedy`."""
    return f"{quantity.unit}, {quantity.group}" if quantity.group else quantity.unit


def mean_cost(trials: Sequence[Trial], part: Callable[[Cost], float]) -> float | None:
    """The mean over runs of one part of the cost; None where no run is finished."""
    if not trials:
        return None
    mean = sum(part(trial.cost) for trial in trials) / len(trials)
    return int(mean) if mean.is_integer() else mean


def missing(comparison: Comparison) -> dict[str, list[int]]:
    """Method -> seeds that are not finished, methods without such left out."""
    done = {(trial.method, trial.seed) for trial in comparison.trials}
    open_ = {m: [seed for seed in comparison.seeds if (m, seed) not in done] for m in comparison.methods}
    return {method: seeds for method, seeds in open_.items() if seeds}


def missing_text(comparison: Comparison) -> str:
    """A sentence on the trials that are not finished; empty for a finished study."""
    left = missing(comparison)
    if not left:
        return ""
    total, count = len(comparison.methods) * len(comparison.seeds), sum(map(len, left.values()))
    names = "; ".join(f"{method}: {seeds_text(seeds)}" for method, seeds in left.items())
    return f"Unfinished: {count} of {total} runs {'is' if count == 1 else 'are'} missing ({names})."


def counted(number: int, thing: str) -> str:
    """`1 run`, or `2 runs`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def seeds_text(seeds: Sequence[int]) -> str:
    """`seed 1`, or `seeds 1, 2`."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def skipped_text(comparison: Comparison) -> str:
    """A sentence on the updates that runs left out; empty where all were made."""
    costs = {method: [trial.cost for trial in comparison.of(method)] for method in comparison.methods}
    left_out = {method: sum(cost.skipped for cost in of) for method, of in costs.items()}
    names = [f"{m}: {count:,} of {sum(c.steps for c in costs[m]):,}" for m, count in left_out.items() if count]
    return f"Updates left out because the loss or its gradient was not finite: {'; '.join(names)}." if names else ""


def settings_text(search: Search) -> str:
    """Of how many settings one was chosen: `3`, or `2 (of 3, 1 has no score)`."""
    tried, left = len(search.scores), len(search.ranked)
    if left == tried:
        return str(tried)
    return f"{left} (of {tried}, {tried - left} {'has' if tried - left == 1 else 'have'} no score)"


def doubts(search: Search) -> dict[str, str]:
    """What speaks against a choice, in few words -> what that means."""
    found: dict[str, str] = {}
    if search.tied > 1:
        decided = "decided nothing" if search.tied == len(search.ranked) else "did not decide between them"
        found[f"{search.tied} settings tied"] = f"the search {decided}, and the first was taken"
    if search.at_edge:
        found["at the edge of its grid"] = "a better setting may lie outside"
    return found


def search_text(search: Search) -> str:
    """Which setting was chosen of how many, and what speaks against the choice."""
    metric = Quantity.of(search.metric)
    score = number(search.scores[search.chosen] * metric.factor)
    chosen = f"chosen of {settings_text(search)} on the validation split with {metric.unit} {score}"
    return "; ".join([f"{search.chosen}, {chosen}", *(f"{what}: {why}" for what, why in doubts(search).items())])


def key(comparison: Comparison) -> str:
    """How the numbers of the table are to be read."""
    seeds = len(comparison.seeds)
    level = f"{comparison.confidence * 100:g}%"
    if seeds < 2:
        return "One seed: there are no confidence intervals and no tests."
    over = f"the finished ones of {seeds} seeds" if missing(comparison) else f"{seeds} seeds"
    return (
        f"Mean over {over} [{level} bootstrap confidence interval]. Differences are from {comparison.baseline}, "
        f"seed by seed; p is that of the paired test, corrected for the number of methods (Holm). {_marks(seeds)}"
    )


def _marks(seeds: int) -> str:
    if seeds >= FEW:
        return (
            f"▲ above and ▼ below the baseline, of {FEW} seeds or more: the interval of the difference, which is not "
            "corrected, excludes 0."
        )
    # A mean lies between the least and the greatest of n values in no more of the cases.
    most = f"{100 - 200 / 2**seeds:.3g}%"
    return f"With {seeds} seeds such an interval holds the mean in {most} of cases at most: no difference is marked."


def _aligned(values: Sequence[float]) -> list[str]:
    """Three significant digits of the largest, and as many decimals for all."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not 1e-3 <= largest < 1e15:
        return [number(value) for value in values]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [f"{value:,.{decimals}f}" for value in values]
