"""What a handful of seeds says: means, intervals, and paired tests that agree with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from veto_pl.compare.results import Contrast, Estimate

_ROUNDING = 1e-6  # relative: metrics are logged in single precision
Values = Mapping[int, float]
"""Seed -> value."""


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean with Student's t interval.

    Args:
        values: one per seed; one that is not finite makes the interval NaN, as a single seed does.
        confidence: of the interval.
    """
    from scipy.stats import ttest_1samp

    mean = math.fsum(values) / len(values) if len(values) else math.nan
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Estimate(mean, math.nan, math.nan)
    if max(values) == min(values):
        return Estimate(mean, mean, mean)
    return Estimate(mean, *map(float, ttest_1samp(values, 0.0).confidence_interval(confidence)))


def contrast(method: Values, baseline: Values, confidence: float = 0.95) -> Contrast:
    """Compare a method with the baseline, paired by seed, by the two-sided t-test and its interval, both uncorrected.

    Args:
        method: seed -> value.
        baseline: seed -> value; seeds that only one of them has count for nothing.
        confidence: of the interval.

    Returns:
        The difference. Where all seeds differ by the same, up to rounding, nothing is known of the spread: there is no
        interval, and p is NaN, or 1 for no difference at all.
    """
    from scipy.stats import ttest_rel

    seeds = sorted(method.keys() & baseline.keys())
    ours, theirs = ([values[seed] for seed in seeds] for values in (method, baseline))
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = math.fsum(differences) / len(seeds) if seeds else math.nan
    unknown = Contrast(Estimate(mean, math.nan, math.nan), math.nan, len(seeds))
    if len(seeds) < 2 or not all(map(math.isfinite, differences)):
        return unknown
    rounding = _ROUNDING * max(map(abs, (*ours, *theirs)))
    if max(differences) - min(differences) <= rounding:
        same = max(map(abs, differences)) <= rounding
        return Contrast(Estimate(mean, mean, mean), 1.0, len(seeds)) if same else unknown
    test = ttest_rel(ours, theirs)
    return Contrast(Estimate(mean, *map(float, test.confidence_interval(confidence))), float(test.pvalue), len(seeds))


def contrasts(methods: Mapping[str, Values], baseline: Values, confidence: float = 0.95) -> dict[str, Contrast]:
    r"""Compare several methods with the baseline; p is corrected for their number by Holm's method.

    An interval is as strict as the p-value beside it: its level is :math:`1 - \alpha\, p / p_\text{Holm}`, so that it
    excludes 0 exactly where the corrected p lies below :math:`\alpha`. With m methods the level lies between
    :math:`1 - \alpha` and Bonferroni's :math:`1 - \alpha / m`: an interval holds its own difference in at least
    :math:`1 - \alpha` of the cases.

    Args:
        methods: name -> seed -> value.
        baseline: seed -> value.
        confidence: 1 - α.
    """
    raw = {name: contrast(values, baseline, confidence).p for name, values in methods.items()}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    tests = sum(not math.isnan(p) for p in raw.values())
    found = {}
    for name, values in methods.items():
        strictness = corrected[name] / raw[name] if raw[name] else tests
        level = confidence if math.isnan(strictness) else 1 - (1 - confidence) / strictness
        pair = contrast(values, baseline, level)
        found[name] = Contrast(pair.difference, corrected[name], pair.seeds)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method; NaN stays NaN and counts for nothing.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(order) - rank)))
        corrected[i] = largest
    return corrected
