"""How long completions are, and whether they end."""

from __future__ import annotations

import torch

from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric


class CompletionLength(CompletionMetric):
    """Mean number of tokens, EOS included."""

    name = "completion_length"
    unit = "tokens"

    def update(self, generations: Generations) -> None:
        self._add(torch.tensor([len(tokens) for tokens in generations.tokens], dtype=torch.float64))


class EosRate(CompletionMetric):
    """The fraction of completions that ended by themselves, with EOS or a stop string."""

    name = "eos_rate"
    title = "EOS rate"
    unit = "%"

    def update(self, generations: Generations) -> None:
        self._add(generations.finished.double())
