"""How a policy gradient is evaluated with teachers of other tokenizers: the student alone goes through its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from veto_pl.functional.units import Units, spread_logp
from veto_pl.objectives.heard import Heard
from veto_pl.objectives.scoring import Scoring
from veto_pl.objectives.token_kernel import TokenLoss
from veto_pl.seams import LossOutput, Step


@dataclass(frozen=True)
class Told:
    """What a teacher says of a reading.

    Args:
        logp: [Nt] log-probabilities of its own tokens.
        units: of the reading's M tokens of the student and of these.
    """

    logp: Tensor
    units: Units


class SpreadScoring(Scoring):
    """One micro-batch under a policy gradient whose teachers' log-probabilities are spread over units.

    Args:
        objective: what is computed; it reads no more of a teacher than its log-probability of the sampled tokens.
        heard: the rollout.
        step: where training stands.
        told: what the teacher of each reading says.
        reference_logp: [N] of the tokens under the reference model, or None.
    """

    def __init__(
        self, objective: TokenLoss, heard: Heard, step: Step, told: Sequence[Told], reference_logp: Tensor | None = None
    ) -> None:
        super().__init__(objective, heard.sequences, step, reference_logp)
        self.speakers, self.told = heard.voices, told

    def reduce(self, scores: dict[str, Tensor]) -> LossOutput:
        """Sum the scores [N] over the batch, in the graph that they have."""
        aligned = self.speakers.joined(self._aligned(scores))["aligned"]
        return super().reduce({**self._spread(scores), "metric/aligned": aligned})

    def look_ahead(self, scores: dict[str, Tensor]) -> None:
        """Ask the objective for numbers of whole completions, given `student_logp` [N]."""
        super().look_ahead(self._spread(scores))

    def _spread(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores with the teachers' log-probabilities, spread over the student's tokens and weighed."""
        mine = scores["student_logp"]
        parts = [
            {"teacher_logp": spread_logp(voice.of(mine), one.logp, one.units)}
            for voice, one in zip(self.speakers.voices, self.told, strict=True)
        ]
        return {**scores, **self.speakers.joined(parts)}

    def _aligned(self, scores: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return for each reading which of its tokens have a unit."""
        kind = scores["student_logp"].dtype
        return [{"aligned": (one.units.student >= 0).to(kind)} for one in self.told]

    def _with_metrics_by_teacher(self, output: LossOutput, parts: list[dict[str, Tensor]]) -> LossOutput:
        shares = self.speakers.metrics(self._aligned(parts[0]))
        return replace(output, metrics={**output.metrics, **shares})
