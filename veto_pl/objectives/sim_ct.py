"""Distillation from a teacher with another tokenizer."""

import contextlib
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.differentiation import closed_form
from veto_pl.functional.unit_outcomes import Score
from veto_pl.functional.units import Units
from veto_pl.models.readout import read_hidden
from veto_pl.models.sharding import gathered
from veto_pl.objectives.heard import Heard
from veto_pl.objectives.student_pass import read_by_student
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.objectives.unit_readings import read_in_own_ids
from veto_pl.objectives.unit_scoring import Spoken, UnitScoring
from veto_pl.parts.divergences import ReverseKL
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Divergence, LanguageModel, LossOutput, Models, RolloutSource, Sequences, Step
from veto_pl.seams.tokens import TokenRows

__all__ = ["SimCT"]


@dataclass(frozen=True, kw_only=True)
class SimCT(TokenObjective):
    r"""A divergence over the smallest pieces of text that student and teacher both end a token at.

    .. math:: \frac{1}{N} \sum_u D\big(\mathrm{softmax}(s_S), \mathrm{softmax}(s_T)\big)_u, \qquad
        s_M = \Big( \log p_M(v) \Big)_{v \in V_S \cap V_T} \cup \frac{1}{k_M} \sum_{j \in u} \log p_M(v_j)

    For each unit u the outcomes are the ids that both vocabularies share, at its first position, and the unit itself
    with the mean log-probability of its tokens, unless it is a shared id. N is the number of the student's tokens.

    The teacher reads the student's bytes in its own ids, behind the prompt as its own chat template writes it; the
    student's ids are never tokenised again. With one tokenizer for both it is the divergence over every id.

    Departures: units are minimal, as in the paper; in the published code a piece that is not aligned takes the next
    token along. There the student's text is tokenised anew, and gets an EOS where it was cut. Tokens that cannot be
    aligned have no loss and stay in the denominator.

    Args:
        rollout: who writes the completions.
        divergence: of student and teacher on a unit's outcomes.
        score: what is averaged over the tokens of a unit: log-probabilities, or raw logits as in the published code.
        units: `minimal` ones, or those that are one token on both sides, `one_to_one`.
        shared: so many of the ids that are shared are outcomes, those that are likeliest for the student; None for all.
            `one_to_one` units with 16 of them are the simple form of arXiv 2610.08448.

    References:
        arXiv 2605.07711
    """

    aligns_tokenizers = True
    aligns_named = True
    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0))
    divergence: Divergence = ReverseKL()
    score: Score = "logp"
    units: Literal["minimal", "one_to_one"] = "minimal"
    shared: Count | None = None

    @classmethod
    def examples(cls) -> tuple["SimCT", ...]:
        return cls(), cls(units="one_to_one", shared=3, temperature=2.0, aggregation="sequence")

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Refuse every stored or served teacher."""
        raise ConfigurationError(f"`SimCT` needs a live teacher: {teacher} does not know every id.")

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the divergence of each token, [n], where student and teacher have one tokenizer."""
        return self.divergence(*self._outcomes(rows))

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Compute the same and its gradient [n, V], in closed form over every id."""
        return self.by_autograd(rows) if self.shared else closed_form(self.divergence)(*self._outcomes(rows))

    def compared(self, units: Units, sequences: Sequences) -> Units:
        """Return the units that have a loss, of the minimal ones of a reading's rows; all are on the host."""
        return units.only(units.single) if self.units == "one_to_one" else units

    def heard_loss(self, heard: Heard, models: Models, step: Step) -> LossOutput:
        """Sum the losses of the units, which teacher and student have read in their own ids.

        Collective where a model is sharded: call it on every rank.
        """
        if not heard.by_own_ids(models):
            return super().heard_loss(heard, models, step)
        sequences, device = heard.sequences, heard.sequences.input_ids.device
        teachers = [models.teacher_named(name) for name in heard.names]
        read = [read_in_own_ids(one, models, type(self).__name__) for one in heard.readings]
        own = zip(heard.readings, read, strict=True)
        units = [self.compared(units, one.sequences) for one, (_, units) in own]
        scoring = UnitScoring(self, heard, [one.to(device) for one in units], step)
        hidden = [read_hidden(teacher, rows) for teacher, (rows, _) in zip(teachers, read, strict=True)]

        def score(of_student: Tensor, student: LanguageModel) -> tuple[Tensor, LossOutput]:
            asked = zip(hidden, teachers, read, strict=True)
            told = [Spoken(states, teacher.head(), rows.token_ids()) for states, teacher, (rows, _) in asked]
            return scoring.run(of_student, student.head(), told)

        with contextlib.ExitStack() as stack:
            for teacher in dict.fromkeys(teachers):
                stack.enter_context(gathered(teacher, head_only=True))
            return read_by_student(sequences, models, score)

    def _outcomes(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of student and teacher on the outcomes of a token, [n, K] each."""
        student, teacher = rows.student_logp, rows.required_teacher_logp()
        if self.shared is None:
            return student, teacher
        ids = student.detach().topk(min(self.shared, student.shape[1]), -1).indices
        chosen = (logp.gather(1, ids) for logp in (student, teacher))
        one, other = (logp - logp.logsumexp(-1, keepdim=True) for logp in chosen)
        return one, other
