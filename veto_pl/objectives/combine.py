"""Sums of objectives."""

import math
from dataclasses import dataclass, field, replace

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.sft import SFT
from veto_pl.parts.schedules import value_at
from veto_pl.rollouts import FromStudent
from veto_pl.seams import (
    AnyObjective,
    Faults,
    LossOutput,
    Models,
    Objective,
    Rollouts,
    RolloutSource,
    Schedule,
    Stat,
    Step,
    TokenValues,
)
from veto_pl.seams.objective import all_align

__all__ = ["Sum"]


@dataclass(frozen=True, kw_only=True)
class Sum(Objective):
    """A weighted sum of objectives. Each is divided by its own number of tokens, so none dilutes another.

    Terms whose rollouts are equal share one rollout.

    Args:
        terms: the objectives by name.
        weights: the weight of each term, a number or a schedule; 1 for a term that is not named. At steps where it is
            0 the term is neither rolled out nor scored.
    """

    terms: dict[str, AnyObjective]
    weights: dict[str, float | Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.weights) - set(self.terms))
        if not self.terms or unknown:
            raise ConfigurationError(
                f"`Sum.weights` must name terms of the sum, got {unknown or 'no terms'}; "
                f"the terms are {sorted(self.terms)}."
            )
        numbers = {name: weight for name, weight in self.weights.items() if not isinstance(weight, Schedule)}
        if infinite := sorted(name for name, weight in numbers.items() if not math.isfinite(weight)):
            raise ConfigurationError(
                f"`Sum.weights` must be finite, got {self.weights[infinite[0]]} for {infinite[0]!r}."
            )
        parts = self.terms.values()
        object.__setattr__(self, "needs_teacher", any(part.needs_teacher for part in parts))
        object.__setattr__(self, "needs_reference", any(part.needs_reference for part in parts))
        object.__setattr__(self, "needs_rewards", any(part.needs_rewards for part in parts))
        object.__setattr__(self, "aligns_tokenizers", all_align(parts))
        object.__setattr__(self, "laws", frozenset.intersection(*(part.laws for part in parts)))

    @classmethod
    def examples(cls) -> tuple["Sum", ...]:
        terms: dict[str, AnyObjective] = {
            "on_policy": Distill(rollout=FromStudent()),
            "gold": SFT(aggregation="sequence"),
        }
        return (cls(terms=terms, weights={"gold": 0.3}),)

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the rollouts of all terms, each once."""
        return tuple(dict.fromkeys(source for term in self.terms.values() for source in term.sources))

    def active(self, step: Step) -> Objective:
        """Return the sum without the terms whose weight is 0 now, as long as any other is left."""
        weighed = {name: part.active(step) for name, part in self.terms.items() if self.weight(name, step)}
        weights = {name: weight for name, weight in self.weights.items() if name in weighed}
        return replace(self, terms=weighed, weights=weights) if weighed else self

    def weight(self, term: str, step: Step) -> float:
        """Return the weight of a term at a step."""
        return value_at(self.weights.get(term, 1.0), step.index, step.total)

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Compute the terms and metrics of all objectives, named `term/name`."""
        losses: dict[str, Stat] = {}
        metrics: dict[str, Stat] = {}
        faults: dict[RolloutSource, Faults] = {}
        tokens: dict[str, TokenValues] = {}
        for name, objective in self.terms.items():
            output = objective.loss(rollouts, models, step)
            weight = self.weight(name, step)
            losses |= {f"{name}/{key}": stat.scaled(weight) for key, stat in output.terms.items()}
            metrics |= {f"{name}/{key}": stat for key, stat in output.metrics.items()}
            tokens |= {f"{name}/{key}": values for key, values in output.tokens.items()}
            for source, found in output.faults.items():
                faults[source] = found | faults[source] if source in faults else found
        return LossOutput(losses, metrics, faults, tokens)
