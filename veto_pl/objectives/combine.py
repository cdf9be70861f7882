"""Sums of objectives."""

import math
from dataclasses import dataclass, field

from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Objective, RolloutSource
from veto_pl.types import Faults, LossOutput, Models, Rollouts, Stat, Step


@dataclass(frozen=True, kw_only=True)
class Sum(Objective):
    """A weighted sum of objectives. Each is divided by its own number of tokens, so none dilutes another.

    Terms whose rollouts are equal share one rollout.

    Args:
        terms: the objectives by name.
        weights: the weight of each term; 1 for a term that is not named.
    """

    terms: dict[str, Objective]
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(self.terms))
        if not self.terms or unknown:
            raise ConfigurationError(
                f"`Sum.weights` must name terms of the sum, got {unknown or 'no terms'}; "
                f"the terms are {sorted(self.terms)}."
            )
        if infinite := sorted(name for name, weight in self.weights.items() if not math.isfinite(weight)):
            raise ConfigurationError(
                f"`Sum.weights` must be finite, got {self.weights[infinite[0]]} for {infinite[0]!r}."
            )
        parts = self.terms.values()
        object.__setattr__(self, "needs_teacher", any(part.needs_teacher for part in parts))
        object.__setattr__(self, "needs_rewards", any(part.needs_rewards for part in parts))
        object.__setattr__(self, "laws", frozenset.intersection(*(part.laws for part in parts)))

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """The rollouts of all terms, each once."""
        return tuple(dict.fromkeys(source for term in self.terms.values() for source in term.sources))

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """The terms and metrics of all objectives, named `term/name`."""
        losses: dict[str, Stat] = {}
        metrics: dict[str, Stat] = {}
        faults: dict[RolloutSource, Faults] = {}
        for name, objective in self.terms.items():
            output = objective.loss(rollouts, models, step)
            weight = self.weights.get(name, 1.0)
            losses |= {f"{name}/{key}": stat.scaled(weight) for key, stat in output.terms.items()}
            metrics |= {f"{name}/{key}": stat for key, stat in output.metrics.items()}
            for source, found in output.faults.items():
                faults[source] = found | faults[source] if source in faults else found
        return LossOutput(losses, metrics, faults)
