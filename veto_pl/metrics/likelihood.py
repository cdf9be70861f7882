"""Metrics of the student's own probability of its completions."""

from __future__ import annotations

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric


class SequenceLogProb(CompletionMetric):
    """Mean log-probability of a whole completion under the student, in nats.

    Where completions are sampled at temperature 1 and nothing is cut off, its negative is an unbiased estimate of the
    entropy of the student's distribution of completions.
    """

    name = "sequence_logp"
    title = "sequence log-probability"
    unit = "nats"
    needs_logp = True

    def update(self, generations: Generations) -> None:
        self._add(_logp(generations))


class CalibrationError(CompletionMetric):
    r"""How far the student's confidence in a completion is from the share of completions that are correct.

    .. math:: \sum_b \frac{1}{N} \Big| \sum_{i \in b} \big(p_i - y_i\big) \Big|

    over bins b of equal width on [0, 1], with the confidence :math:`p_i` and the correctness :math:`y_i` of the N
    completions: the expected calibration error.

    Args:
        per_token: confidence is the geometric mean of the probabilities of the tokens; otherwise it is the probability
            of the whole completion, which is near 0 for long ones.
        bins: number of bins.

    Raises:
        ConfigurationError: `bins` is below 1.

    References:
        arXiv 1706.04599
    """

    higher_is_better = False
    needs_logp = True
    gaps: Tensor

    def __init__(self, per_token: bool = True, bins: int = 15) -> None:
        super().__init__()
        if bins < 1:
            raise ConfigurationError(f"`CalibrationError.bins` must be at least 1, got {bins}.")
        self.per_token, self.bins = per_token, bins
        self.name = "calibration_error" if per_token else "sequence_calibration_error"
        self.unit = f"per {'token' if per_token else 'completion'}"
        self.add_state("gaps", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, generations: Generations) -> None:
        logp = _logp(generations)
        if self.per_token:
            lengths = torch.tensor([len(ids) for ids in generations.tokens], device=logp.device)
            logp = logp / lengths.clamp_min(1).view(logp.shape)
        confidence = logp.exp().flatten()
        gap = confidence - (generations.rewards.to(logp.device) == 1.0).flatten().double()
        place = (confidence * self.bins).long().clamp(0, self.bins - 1)
        self._add(gap)
        self.gaps = self.gaps + torch.zeros_like(self.gaps).index_add(0, place.to(self.gaps.device), gap.to(self.gaps))

    def compute(self) -> Tensor:
        """Return the sum of the bins' gaps over the number of completions; 0 before the first update."""
        return (self.gaps.abs().sum() / self.weight.clamp_min(1)).float()


def _logp(generations: Generations) -> Tensor:
    """Return the log-probabilities of the completions, [G, K] float64."""
    assert generations.logp is not None, "the evaluation fills it in for metrics with `needs_logp`"
    return generations.logp.double()
