"""The student's pass over a rollout, out of which the total of a loss comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from veto_pl.seams import LanguageModel, LossOutput, Models, Sequences, Stat


def read_by_student(
    sequences: Sequences, models: Models, score: Callable[[Tensor, LanguageModel], tuple[Tensor, LossOutput]]
) -> LossOutput:
    """Run the student over a rollout and return what `score` makes of its hidden states [N, D].

    The total comes out of the student's forward, where sharding hooks into the graph.
    """
    outputs: list[LossOutput] = []

    def readout(hidden: Tensor, student: LanguageModel) -> Tensor:
        total, output = score(hidden, student)
        outputs.append(output)
        return total

    total: Tensor = models.student(sequences, readout)
    return replace(outputs[0], terms={"loss": Stat(total, outputs[0].terms["loss"].weight)})
