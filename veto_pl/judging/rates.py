"""How often one set of answers is preferred to another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from veto_pl.exceptions import DataError
from veto_pl.judging.preferences import Pair, Verdict, ask_all
from veto_pl.seams import Example, Judge


@dataclass(frozen=True)
class HeadToHead:
    """The outcome of a comparison, from the side of the first answers.

    Args:
        wins: pairs whose first answer is better.
        ties: pairs without a better answer, disagreements included.
        losses: pairs whose second answer is better.
        disagreements: ties that come from a judge who changed its mind with the order of the answers.
        first_shown_wins: of the replies that named a winner, the share that named the answer shown first; NaN without
            any. A judge without a bias for a position has 0.5 where both orders are asked.
        unjudged: pairs without a verdict, by reason; they count in no rate.
        rate: wins plus half the ties, over the judged pairs.
        low: lower end of the 95% confidence interval of the rate.
        high: its upper end.
        verdicts: the score of each pair, None where it was not judged.
    """

    wins: int
    ties: int
    losses: int
    disagreements: int
    first_shown_wins: float
    unjudged: Mapping[str, int]
    rate: float
    low: float
    high: float
    verdicts: tuple[float | None, ...]

    @property
    def judged(self) -> int:
        """Pairs with a verdict."""
        return self.wins + self.ties + self.losses

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> HeadToHead:
        """Count verdicts; all rates are NaN if there are none."""
        counts = Counter(verdict.score for verdict in verdicts)
        wins, ties, losses = counts[1.0], counts[0.5], counts[0.0]
        shown = [won for verdict in verdicts for won in verdict.shown_first]
        judged = wins + ties + losses
        rate = (wins + ties / 2) / judged if judged else math.nan
        low, high = wilson(rate, judged)
        return cls(
            wins=wins,
            ties=ties,
            losses=losses,
            disagreements=sum(verdict.disagreed for verdict in verdicts),
            first_shown_wins=sum(shown) / len(shown) if shown else math.nan,
            unjudged=dict(Counter(verdict.reason for verdict in verdicts if verdict.score is None).most_common()),
            rate=rate,
            low=low,
            high=high,
            verdicts=tuple(verdict.score for verdict in verdicts),
        )


def win_rate(
    judge: Judge,
    examples: Sequence[Example],
    first: Sequence[str],
    second: Sequence[str],
    *,
    seed: int = 0,
    both_orders: bool = True,
) -> HeadToHead:
    """Compare two answers to each row.

    Args:
        judge: decides; one with a field `concurrency` is asked from so many threads.
        examples: the rows.
        first: an answer to each row.
        second: another answer to each row.
        seed: where one order is asked, it decides with the texts which answer is shown first.
        both_orders: ask each pair twice, with the answers exchanged; a verdict that depends on the order is a tie. It
            doubles the cost and takes a judge's bias for a position out of the rate.

    Raises:
        DataError: the lengths differ, there is no row, or the judge decided nothing at all.

    Example:
        >>> from veto_pl.judging import ReferenceJudge
        >>> rows = [Example("...", "the cat sat"), Example("...", "it rained")]
        >>> found = win_rate(ReferenceJudge(), rows, ["the cat sat", "it rained"], ["a dog", "it rained"])
        >>> found.wins, found.ties, found.losses, found.rate
        (1, 1, 0, 0.75)
    """
    if not len(examples) == len(first) == len(second) or not examples:
        given = f"{len(examples)} rows, {len(first)} first and {len(second)} second answers"
        raise DataError(f"`win_rate` expected one or more rows with two answers each, got {given}.")
    pairs = [Pair(*row) for row in zip(examples, first, second, strict=True)]
    found = HeadToHead.of(ask_all(judge, pairs, both_orders=both_orders, seed=seed))
    if not found.judged:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in found.unjudged.items())
        raise DataError(f"{type(judge).__name__} gave no verdict on any of {len(pairs)} pairs: {reasons}.")
    return found


def wilson(rate: float, number: float, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's interval of a proportion, NaN without observations.

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}

    A tie that counts as half has less variance than a win or a loss: with ties the interval is wider than need be.

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953

    Example:
        >>> low, high = wilson(0.5, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    if not number:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = rate + z * z / (2 * number)
    spread = z * math.sqrt(max(rate * (1 - rate), 0.0) / number + z * z / (4 * number * number))
    scale = 1 + z * z / number
    return (middle - spread) / scale, (middle + spread) / scale
