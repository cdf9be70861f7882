"""Likelihood of given completions: the task's, or the teacher's."""

from dataclasses import dataclass

from torch import Tensor

from veto_pl.functional.closed_forms import negative_log_likelihood
from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.rollouts import FromTeacher, Sampling, TeacherSteps
from veto_pl.seams import RolloutSource
from veto_pl.seams.tokens import TokenRows

__all__ = ["SFT", "SeqKD", "StepwiseSFT"]


@dataclass(frozen=True, kw_only=True)
class SFT(TokenObjective):
    r"""Supervised fine-tuning: the likelihood of the completions, without a teacher.

    Args:
        rollout: who writes the completions.
        context: unused without a teacher.
        temperature: divides the student's logits in the loss.
        aggregation: `token` weighs every token alike, `sequence` every completion, `turn` every turn of the
            agent, `episode` every episode.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.
    """

    needs_teacher = False

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the negative log-likelihood of each token, [n] in nats."""
        return -rows.token_logp()

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Compute the negative log-likelihood and its gradient in closed form."""
        return negative_log_likelihood(rows.student_logp, rows.token_ids)


@dataclass(frozen=True, kw_only=True)
class SeqKD(SFT):
    """Sequence-level distillation: fine-tuning on the teacher's own completions, greedy by default.

    Departures: the teacher writes at every step and samples, where the paper stores the result of a beam search once.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        temperature: divides the student's logits in the loss.
        aggregation: `token` weighs every token alike, `sequence` every completion, `turn` every turn of the
            agent, `episode` every episode.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.

    References:
        arXiv 1606.07947
    """

    needs_teacher = True

    rollout: RolloutSource = FromTeacher(Sampling(temperature=0.0))


@dataclass(frozen=True, kw_only=True)
class StepwiseSFT(SeqKD):
    r"""Step-level distillation: fine-tuning on what the teacher would do next after each step of the student.

    .. math:: \frac{1}{K} \sum_k \frac{1}{|\tilde s_k|} \sum_j
        -\log p_S(\tilde s_{k,j} \mid x, s_{<k}, \tilde s_{k,<j}), \qquad \tilde s_k \sim p_T(\cdot \mid x, s_{<k})

    The teacher's probabilities are not needed, only its text. With one step it is `SeqKD`; with steps of one token that
    the teacher samples, the expectation is the forward KL on the student's completions, plus the teacher's entropy.

    Departures: steps end at blank lines (a heading that follows none begins no step), and a step that begins with the
    end of the completion counts as one. The prefix is read anew for every step.

    Args:
        rollout: who writes the steps.
        context: what the teacher reads.
        temperature: divides the student's logits in the loss.
        aggregation: `sequence` weighs every step alike, as in the paper, `token` every token.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.

    References:
        arXiv 2608.16333
    """

    rollout: RolloutSource = TeacherSteps()
    aggregation: Aggregation = "sequence"

    @classmethod
    def examples(cls) -> tuple["StepwiseSFT", ...]:
        return (cls(rollout=TeacherSteps(separator="o")),)
