"""What a teacher without a model says in a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from veto_pl.core.scores import TopKScores
from veto_pl.seams import Answers, ScoreSource, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class _Told(ScoreSource):
    """Scores of a shape, without values; nobody is asked.

    Args:
        scores: of no tokens, [0].
    """

    scores: TopKScores

    @classmethod
    def examples(cls) -> tuple[_Told, ...]:
        return ()

    def of_nothing(self) -> TopKScores:
        return self.scores

    def __call__(self, sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> Answers:
        known, shape = self.scores, tuple(sequences.input_ids.shape)
        k, sampled = known.ids.shape[-1], known.sampled_logp is not None
        return Answers(TopKScores.uniform(shape, k, known.temperature, sampled=sampled).to(sequences.input_ids.device))


def shape_of(source: ScoreSource) -> ScoreSource:
    """Return what stands for a source of scores in a plan."""
    return _Told(source.of_nothing())
