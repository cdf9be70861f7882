"""What the page and the markdown of a comparison say in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from veto_pl.charts.text import minus, number
from veto_pl.compare.results import Comparison, Contrast, Estimate, Search, Trial
from veto_pl.report.columns import Quantity


def reading(estimate: Estimate | None, quantity: Quantity, *, sign: bool = False) -> str:
    """Return a mean with its interval in the quantity's unit, all with the same decimals; a dash where there is none.

    Args:
        estimate: in the unit that was logged.
        quantity: how it is shown.
        sign: whether a mean above 0 gets a plus: for differences.

    >>> percent = Quantity("greedy/accuracy", "Accuracy", "accuracy (%)", factor=100.0)
    >>> reading(Estimate(0.5, 0.25, 0.75), percent)
    '50.0 [25.0, 75.0]'
    >>> reading(Estimate(0.02654, -0.0051, 0.0646), percent, sign=True)
    '+2.65 [−0.51, 6.46]'
    """
    if estimate is None or math.isnan(estimate.mean):
        return "—"
    values = [value * quantity.factor for value in (estimate.mean, estimate.low, estimate.high)]
    mean, low, high = map(minus, _aligned(values))
    plus = "+" if sign and values[0] > 0 else ""
    return f"{plus}{mean}" if math.isnan(estimate.low) else f"{plus}{mean} [{low}, {high}]"


def direction(contrast: Contrast | None, confidence: float) -> str:
    """Return `▲` or `▼` where the corrected p lies below 1 - confidence, else nothing."""
    if contrast is None or not contrast.p < 1 - confidence:
        return ""
    return "▲" if contrast.difference.mean > 0 else "▼"


def difference(contrast: Contrast | None, quantity: Quantity, confidence: float) -> str:
    """Return the arrow, if any, and the difference with its interval."""
    shown = reading(None if contrast is None else contrast.difference, quantity, sign=True)
    return f"{direction(contrast, confidence)} {shown}".strip()


def p_value(contrast: Contrast) -> str:
    """Return p with two digits, or that it is below 0.001; nothing where there is no test.

    >>> p_value(Contrast(Estimate(1.0, 0.5, 1.5), 0.0312, 5)), p_value(Contrast(Estimate(1.0, 0.5, 1.5), 0.3, 5))
    ('p = 0.031', 'p = 0.30')
    """
    if math.isnan(contrast.p):
        return ""
    return "p < 0.001" if contrast.p < 1e-3 else f"p = {contrast.p:#.2g}"


def mean_costs(trials: Sequence[Trial]) -> tuple[float | None, float | None, float | None, float | None]:
    """Return the mean steps, tokens, turns and seconds of finished runs; None where there are none."""
    if not trials:
        return None, None, None, None
    costs = [(trial.cost.steps, trial.cost.tokens, trial.cost.turns or 0, trial.cost.seconds) for trial in trials]
    steps, tokens, turns, seconds = (sum(part) / len(costs) for part in zip(*costs, strict=True))
    played = any(trial.cost.turns is not None for trial in trials)
    return round(steps), round(tokens), round(turns) if played else None, seconds


def duration(seconds: float | None) -> str:
    """Return seconds as text in seconds, minutes or hours.

    >>> duration(41.25), duration(600.0), duration(8100.0), duration(None)
    ('41.2 s', '10.0 min', '2.25 h', '—')
    """
    if seconds is None or not math.isfinite(seconds):
        return "—"
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds >= 2 * s), (1, "s"))
    return f"{number(seconds / size)} {unit}"


def missing_text(comparison: Comparison) -> str:
    """Return a sentence on the trials that are not finished; empty for a finished study."""
    done = {(trial.method, trial.seed) for trial in comparison.trials}
    left = {m: [s for s in comparison.seeds if (m, s) not in done] for m in comparison.methods}
    count, total = sum(map(len, left.values())), len(comparison.methods) * len(comparison.seeds)
    names = "; ".join(f"{m}: seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for m, s in left.items() if s)
    return f"Unfinished: {count} of {total} runs {'is' if count == 1 else 'are'} missing ({names})." if count else ""


def counted(number: int, thing: str) -> str:
    """Return `1 run`, or `2 runs`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def skipped_text(comparison: Comparison) -> str:
    """Return a sentence on the updates that runs left out; empty where all were made."""
    costs = {method: [trial.cost for trial in comparison.of(method)] for method in comparison.methods}
    left_out = {method: sum(cost.skipped for cost in of) for method, of in costs.items()}
    names = [f"{m}: {count:,} of {sum(c.steps for c in costs[m]):,}" for m, count in left_out.items() if count]
    return f"Updates left out because the loss or its gradient was not finite: {'; '.join(names)}." if names else ""


def settings_text(search: Search) -> str:
    """Return as text the number of settings that one was chosen from: `3`, or `2 (of 3, 1 has no score)`."""
    tried, left = len(search.scores), len(search.ranked)
    if left == tried:
        return str(tried)
    return f"{left} (of {tried}, {tried - left} {'has' if tried - left == 1 else 'have'} no score)"


def doubts(search: Search) -> dict[str, str]:
    """Return the reasons to doubt a choice: a few words -> what they mean."""
    found: dict[str, str] = {}
    if search.tied > 1:
        decided = "decided nothing" if search.tied == len(search.ranked) else "did not decide between them"
        found[f"{search.tied} settings tied"] = f"the search {decided}, and the first was taken"
    if search.at_edge:
        found["at the edge of its grid"] = "a better setting may lie outside"
    return found


def doubted(comparison: Comparison) -> str:
    """Return in how many searches the choice may be doubted; empty where it is none."""
    count = sum(bool(doubts(search)) for search in comparison.searches.values())
    return f"The settings of {count} of {counted(len(comparison.searches), 'method')} may be doubted" if count else ""


def search_text(search: Search, metric: Quantity) -> str:
    """Return as text the chosen setting, the number it was chosen from, and the reasons to doubt the choice."""
    score = number(search.scores[search.chosen] * metric.factor)
    chosen = f"chosen of {settings_text(search)} on the validation split with {metric.label} {score}"
    return "; ".join([f"{search.chosen}, {chosen}", *(f"{what}: {why}" for what, why in doubts(search).items())])


def key(comparison: Comparison) -> str:
    """Return the sentences that explain how to read the numbers of the table."""
    seeds = len(comparison.seeds)
    if seeds < 2:
        return "One seed: there are no confidence intervals and no tests."
    over = f"the finished ones of {seeds} seeds" if missing_text(comparison) else f"{seeds} seeds"
    return (
        f"Mean over {over} [{comparison.confidence * 100:g}% t interval]. Differences are from {comparison.baseline}, "
        "seed by seed; p is that of the paired t-test, corrected for the number of methods (Holm), and the interval is "
        f"widened to match. ▲ above and ▼ below the baseline: p is below {1 - comparison.confidence:.3g}, and the "
        "interval excludes 0."
    )


def _aligned(values: Sequence[float]) -> list[str]:
    """Return three significant digits of the largest, and as many decimals for all."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not 1e-3 <= largest < 1e15:
        return [number(value) for value in values]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [f"{value:,.{decimals}f}" for value in values]
