"""The probability of a correct answer among k, for every k, with its confidence interval."""

from __future__ import annotations

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.judging.rates import wilson
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.metrics.reward import PassAtK


class PassBound(PassAtK):
    r"""A bound of the confidence interval of pass@k over prompts.

    Wilson's score interval with an effective number of prompts, because the chances of a prompt are no coin flips:

    .. math:: \frac{m + z^2 / 2e \pm z \sqrt{m (1 - m) / e + z^2 / 4e^2}}{1 + z^2 / e}, \qquad e = G m (1 - m) / s^2

    with the mean m of the G prompts' estimates and their variance s², to which one prompt of the greatest variance
    possible, m (1 - m), is added, so that it is never 0 by chance; e is G where every estimate is 0, or every one 1.

    Args:
        k: completions drawn; at most the number of completions per prompt.
        upper: the upper bound instead of the lower one.
        confidence: probability that the interval covers, above 0 and below 1.

    Raises:
        ConfigurationError: k is below 1 or above the number of completions per prompt, or the confidence is out of
            range.

    References:
        Wilson (1927), doi:10.1080/01621459.1927.10502953; effective size after Korn and Graubard (1998)
    """

    squares: Tensor

    def __init__(self, k: int = 1, upper: bool = False, confidence: float = 0.95) -> None:
        super().__init__(k)
        self.upper = upper
        self.confidence = _checked(confidence, "PassBound")
        self.name = f"pass@{k}_{'high' if upper else 'low'}"
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, generations: Generations) -> None:
        chances = self.chances(generations)
        self._add(chances)
        self.squares = self.squares + chances.double().square().sum()

    def compute(self) -> Tensor:
        """Return the bound; 0 before the first update."""
        number = float(self.weight)
        if not number:
            return self.total.float()
        mean = float(self.total) / number
        spread = mean * (1 - mean)
        variance = (float(self.squares) - number * mean**2 + spread) / max(number, 1.0)
        effective = number * spread / variance if variance > 0 else number
        if mean == float(self.upper):
            return self.total.new_tensor(mean).float()  # the formula's two terms cancel, up to rounding
        bound = wilson(mean, effective, self.confidence)[self.upper]
        return self.total.new_tensor(min(max(bound, 0.0), 1.0)).float()


class PassCurve(MetricFamily):
    """pass@k for every k up to the number of completions per prompt, each with the bounds of its interval.

    They are logged as `pass@k`, `pass@k_low` and `pass@k_high`. The interval says how far other prompts of the same
    kind might have given another value.

    Args:
        confidence: probability that an interval covers.

    Raises:
        ConfigurationError: the confidence is out of range.
    """

    def __init__(self, confidence: float = 0.95) -> None:
        self.confidence = _checked(confidence, "PassCurve")

    def members(self, num_completions: int) -> list[CompletionMetric | TokenMetric]:
        """Return three metrics for each k: the estimate and both bounds."""
        metrics: list[CompletionMetric | TokenMetric] = []
        for k in range(1, num_completions + 1):
            metrics += [PassAtK(k), *(PassBound(k, upper, self.confidence) for upper in (False, True))]
        return metrics


def _checked(confidence: float, name: str) -> float:
    if not 0 < confidence < 1:
        raise ConfigurationError(f"`{name}.confidence` must lie between 0 and 1, got {confidence}.")
    return confidence
