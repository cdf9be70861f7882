"""Policy gradients on the log-probabilities of a teacher with another tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.panel_stream import PanelStream, Reader
from veto_pl.functional.units import Units, spread_logp
from veto_pl.models.readout import token_logp
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.objectives.scoring import Scoring
from veto_pl.objectives.student_pass import read_by_student
from veto_pl.objectives.token_kernel import TokenLoss
from veto_pl.objectives.unit_readings import read_in_own_ids
from veto_pl.parts.advantages import LogRatio
from veto_pl.seams import Advantage, LanguageModel, LossOutput, Models, Rollouts, Sequences, Stat, Step
from veto_pl.seams.tokens import TokenGrid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SimpleOPD"]


@dataclass(frozen=True, kw_only=True)
class SimpleOPD(PolicyGradient):
    r"""On-policy distillation from a teacher with another tokenizer, where both write the same token.

    .. math:: A_t = \log p_T(z_i) - \log p_S(y_t)

    where the teacher's token z and the student's y are the same text behind the same text, and 0 elsewhere. With
    `minimal` units the log-ratio of every unit u is spread evenly over its m tokens of the student:

    .. math:: A_t = \frac{1}{m_u} \Big( \sum_{j \in u} \log p_T(z_j) - \sum_{t \in u} \log p_S(y_t) \Big)

    The teacher reads the student's bytes in its own ids, behind the prompt as its own chat template writes it. With one
    tokenizer for both it is `OPD`, but for the silent tokens.

    Departures: the KL to the student's start, which the authors add, is left out. One update is made per rollout, so
    the clipping of the probability ratio never binds.

    Args:
        rollout: who writes the completions.
        units: those that are one token on both sides, or all `minimal` ones.
        silent: names of the student's tokens without a log-ratio: where models end their thoughts and turns is a habit.

    References:
        arXiv 2608.14277; arXiv 2606.09456 (spread over units)
    """

    aligns_tokenizers = True
    units: Literal["one_to_one", "minimal"] = "one_to_one"
    silent: tuple[str, ...] = ("</think>", "<|im_end|>")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout.stored_teacher:
            raise ConfigurationError("`SimpleOPD.rollout` needs a live teacher, which reads the text in its own ids.")

    @classmethod
    def examples(cls) -> tuple["SimpleOPD", ...]:
        return cls(), cls(units="minimal", silent=(), aggregation="sequence")

    def credit(self) -> Advantage:
        """Return the log-ratio of the token."""
        return LogRatio()

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Run teacher and student over the rollout, each in its own ids, and sum the losses of the student's tokens.

        Collective where a model is sharded: call it on every rank.
        """
        sequences, teacher = self.select(rollouts[self.rollout], step), models.required_teacher()
        if models.teacher_tokenizer is None:
            rows, units = self.context(sequences, models, step), _each_alone(sequences)
        else:
            rows, units = read_in_own_ids(self, sequences, models)
        units = self._heard(units, sequences, models.tokenizer).to(sequences.input_ids.device)
        theirs = token_logp(teacher, rows, temperature=self.temperature, chunk_rows=self.chunk_rows)
        scoring = SpreadScoring(self, sequences, step, theirs, units)

        def score(hidden: Tensor, student: LanguageModel) -> tuple[Tensor, LossOutput]:
            alone = [Reader()]
            return scoring.run(
                PanelStream(hidden, student.head(), alone, chunk_rows=self.chunk_rows, compiled=self.compile)
            )

        output = read_by_student(sequences, models, score)
        heard = Stat((units.student >= 0).sum().float(), sequences.predictions.sum().float())
        return replace(output, metrics={**output.metrics, "aligned": heard})

    def _heard(self, units: Units, sequences: Sequences, tokenizer: "PreTrainedTokenizerBase | None") -> Units:
        """Return the units that have a log-ratio."""
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()  # pictures have ids without names
        silent = torch.tensor([vocabulary[name] for name in self.silent if name in vocabulary], dtype=torch.int64)
        quiet = torch.isin(sequences.token_ids().cpu(), silent)
        kept = torch.ones(units.count, dtype=torch.bool)
        kept[units.student[quiet & (units.student >= 0)]] = False
        return units.only(kept & units.single if self.units == "one_to_one" else kept)


class SpreadScoring(Scoring):
    """One micro-batch under a policy gradient, with a teacher's log-probabilities of its own tokens.

    Args:
        objective: what is computed; it reads no more of the teacher than its log-probability of the sampled tokens.
        sequences: the rollout.
        step: where training stands.
        teacher_logp: [Nt] log-probabilities of the teacher's tokens.
        units: of the rollout's N tokens and of these.
    """

    def __init__(
        self, objective: TokenLoss, sequences: Sequences, step: Step, teacher_logp: Tensor, units: Units
    ) -> None:
        super().__init__(objective, sequences, step)
        self.teacher_logp, self.units = teacher_logp, units

    def _grid(self, scores: Mapping[str, Tensor]) -> TokenGrid:
        spread = spread_logp(scores["student_logp"], self.teacher_logp, self.units)
        return super()._grid({**scores, "teacher_logp": spread})


def _each_alone(sequences: Sequences) -> Units:
    """Return the units of a teacher that reads the student's own ids."""
    tokens = torch.arange(int(sequences.host_masks[1, :, 1:].sum()))
    return Units(tokens, tokens, len(tokens))
