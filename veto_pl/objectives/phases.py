"""One objective after another."""

from dataclasses import dataclass

from veto_pl.core.bounds import UnitInterval
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.sft import SFT
from veto_pl.rollouts import FromStudent
from veto_pl.seams import AnyObjective, LossOutput, Models, Objective, Rollouts, RolloutSource, Step
from veto_pl.seams.objective import all_align

__all__ = ["Phases"]


@dataclass(frozen=True, kw_only=True)
class Phases(Objective):
    """Trains on one objective first, then on another, as a cold start by fine-tuning before on-policy distillation.

    Only the objective of the phase is rolled out and scored.

    Args:
        first: the objective of the first phase.
        then: the objective of the second.
        switch: the fraction of the run after which the second begins, in [0, 1].

    References:
        arXiv 2604.13016 (the off-policy cold start)
    """

    first: AnyObjective
    then: AnyObjective
    switch: UnitInterval = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        for need in ("needs_teacher", "needs_reference", "needs_rewards"):
            object.__setattr__(self, need, getattr(self.first, need) or getattr(self.then, need))
        object.__setattr__(self, "aligns_tokenizers", all_align((self.first, self.then)))
        object.__setattr__(self, "laws", self.first.laws & self.then.laws)

    @classmethod
    def examples(cls) -> tuple["Phases", ...]:
        return cls(first=SFT(), then=Distill(rollout=FromStudent())), cls(first=SFT(), then=SFT(), switch=0.0)

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the rollouts of both phases."""
        return tuple(dict.fromkeys((*self.first.sources, *self.then.sources)))

    def active(self, step: Step) -> Objective:
        """Return the objective of the phase that the step belongs to."""
        phase = self.first if step.index < self.switch * step.total else self.then
        active: Objective = phase.active(step)
        return active

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Compute the loss of the phase."""
        return self.active(step).loss(rollouts, models, step)
