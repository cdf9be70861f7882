"""Metrics of episodes, in which the student talks to an environment."""

from __future__ import annotations

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.agreement import ReverseKL
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric, MetricFamily, TokenMetric


class Turns(CompletionMetric):
    """Mean number of the student's turns in an episode; 0 for single answers."""

    name = "turns"
    title = "turns of an episode"
    unit = "turns"

    def update(self, generations: Generations) -> None:
        if generations.turns is not None:
            self._add(generations.turns)


class _ShareOfTurns(CompletionMetric):
    """The share of turns that something holds for, over all turns of all episodes; 0 for single answers."""

    unit = "%"
    higher_is_better = False

    def _count(self, counts: Tensor | None, turns: Tensor | None) -> None:
        if counts is not None and turns is not None:
            self.total = self.total + counts.double().sum()
            self.weight = self.weight + turns.double().sum()


class FailedTurns(_ShareOfTurns):
    """The fraction of turns that could not be carried out, such as calls that nobody can read and tools that raise."""

    name = "failed_turns"
    title = "turns that failed"

    def update(self, generations: Generations) -> None:
        self._count(generations.failed_turns, generations.turns)


class LateTurns(_ShareOfTurns):
    """The fraction of turns at which the environment did not answer in time: another machine may see other episodes."""

    name = "late_turns"
    title = "turns without a reply in time"

    def update(self, generations: Generations) -> None:
        self._count(generations.late_turns, generations.turns)


class TurnKL(MetricFamily):
    """KL(student || teacher) in nats at each turn of the student, as `turn_1/reverse_kl` and so on.

    Their number is fixed, so that all ranks have the same, however long their episodes are. A turn that no episode has
    reached has 0.

    Args:
        turns: the first turns of episodes; later ones are left out.

    Raises:
        ConfigurationError: `turns` is below 1.

    References:
        arXiv 2604.24005, figure 2
    """

    def __init__(self, turns: int = 8) -> None:
        if turns < 1:
            raise ConfigurationError(f"`TurnKL.turns` must be at least 1, got {turns}.")
        self.turns = turns

    def members(self, num_completions: int) -> list[CompletionMetric | TokenMetric]:
        """Return a metric for each turn."""
        return [_at_turn(ReverseKL(), k) for k in range(1, self.turns + 1)]


def _at_turn(metric: TokenMetric, turn: int) -> TokenMetric:
    """Return a metric that measures one turn alone."""
    metric.turn, metric.name = turn, f"turn_{turn}/{metric.name}"
    return metric
