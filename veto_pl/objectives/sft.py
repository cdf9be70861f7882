"""Likelihood of given completions: the task's, or the teacher's."""

from dataclasses import dataclass

from torch import Tensor

from veto_pl.functional.closed_forms import negative_log_likelihood
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.rollouts import FromTeacher, Sampling
from veto_pl.seams import RolloutSource
from veto_pl.seams.tokens import TokenRows


@dataclass(frozen=True, kw_only=True)
class SFT(TokenObjective):
    r"""Supervised fine-tuning: the likelihood of the completions, without a teacher.

    Args:
        rollout: who writes the completions.
        context: unused without a teacher.
        temperature: divides the student's logits in the loss.
        aggregation: `token` weighs every token alike, `sequence` every completion.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time.
    """

    needs_teacher = False

    def per_token(self, rows: TokenRows) -> Tensor:
        """The negative log-likelihood of each token."""
        return -rows.token_logp()

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """In closed form."""
        return negative_log_likelihood(rows.student_logp, rows.token_ids)


@dataclass(frozen=True, kw_only=True)
class SeqKD(SFT):
    """Sequence-level distillation: fine-tuning on the teacher's own completions, greedy by default.

    The paper decodes with beam search and stores the result once; here the teacher writes at every step.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        temperature: divides the student's logits in the loss.
        aggregation: `token` weighs every token alike, `sequence` every completion.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time.

    References:
        arXiv 1606.07947
    """

    needs_teacher = True

    rollout: RolloutSource = FromTeacher(Sampling(temperature=0.0))
