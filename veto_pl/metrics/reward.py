"""Metrics of the rewards of completions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric
from veto_pl.seams import Mistake, Setup


class Accuracy(CompletionMetric):
    """The fraction of completions whose reward is exactly 1."""

    name = "accuracy"
    unit = "%"
    higher_is_better = True

    def update(self, generations: Generations) -> None:
        self._add((generations.rewards == 1.0).float())


class MeanReward(CompletionMetric):
    """The mean reward of the completions."""

    name = "mean_reward"
    higher_is_better = True

    def update(self, generations: Generations) -> None:
        self._add(generations.rewards)


class PassAtK(CompletionMetric):
    r"""The probability that at least one of k completions is correct, without bias.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k}

    averaged over prompts, with n completions of a prompt of which c are correct.

    Args:
        k: completions drawn; at most the number of completions per prompt.

    Raises:
        ConfigurationError: k is below 1, or above the number of completions per prompt (at the first update).

    References:
        arXiv 2107.03374
    """

    unit = "%"
    higher_is_better = True

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise ConfigurationError(f"`PassAtK.k` must be at least 1, got {k}.")
        self.k = k
        self.name = f"pass@{k}"

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield that there are fewer completions of a prompt."""
        count = setup.evaluation.num_completions
        if self.k > count:
            yield Mistake("model.evaluation.num_completions", f"{count}, with the metric pass@{self.k}",
                          f"at least {self.k}", "Raise it, or leave the metric out.")  # fmt: skip

    def update(self, generations: Generations) -> None:
        self._add(self.chances(generations))

    def chances(self, generations: Generations) -> Tensor:
        """Return the estimate of each prompt, [G] float64."""
        rewards = generations.rewards
        count = rewards.shape[1]
        if self.k > count:
            raise ConfigurationError(
                f"pass@{self.k} needs at least {self.k} completions per prompt, got {count}. Raise "
                "`model.evaluation.num_completions`."
            )
        wrong = (rewards != 1.0).sum(1, keepdim=True).double()
        # The product of (n - c - i) / (n - i) over i < k; a factor of 0 ends it where fewer than k are wrong.
        drawn = torch.arange(self.k, device=rewards.device)
        return 1 - ((wrong - drawn).clamp_min(0) / (count - drawn)).prod(1)
