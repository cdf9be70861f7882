"""What an objective sees of the tokens: vocabulary-sized rows inside a chunk, scalars over the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.scores import TopKScores
from veto_pl.types import Step

if TYPE_CHECKING:
    from veto_pl.seams import Support


@dataclass(frozen=True)
class TokenRows:
    """A few completion tokens.

    Args:
        student_logp: [n, V] float32 log-probabilities; with a graph only where `per_token` is differentiated.
        teacher_logp: [n, V] float32, without graph; None where the objective needs no teacher.
        token_ids: [n] int64, the tokens that follow.
        sequence_rows: [n] int64, the row of the batch that each token belongs to.
        step: where training stands.
        stored: [n] what a stored teacher says; None where a live one was asked.
        ahead: [n] by name: what a `TokenObjective` asked for in `look_ahead`, without graph.
    """

    student_logp: Tensor
    teacher_logp: Tensor | None
    token_ids: Tensor
    sequence_rows: Tensor
    step: Step
    stored: TopKScores | None = None
    ahead: Mapping[str, Tensor] = field(default_factory=dict)

    def token_logp(self) -> Tensor:
        """[n]: the student's log-probability of the tokens, in the graph of `student_logp`."""
        return self.student_logp.gather(1, self.token_ids[:, None])[:, 0]

    def required_teacher_logp(self) -> Tensor:
        """The teacher's log-probabilities, for objectives that need a teacher."""
        assert self.teacher_logp is not None, "an objective with `needs_teacher` always gets the teacher's rows"
        return self.teacher_logp

    def outcomes(self, support: Support) -> tuple[Tensor, Tensor]:
        """[n, K] and [n, K]: both models on the outcomes of `support`, or on those that a stored teacher kept."""
        if self.stored is not None:
            return top_k_with_tail(self.student_logp, self.stored.ids), self.stored.logp
        return support(self.student_logp, self.required_teacher_logp())

    def teacher_token_logp(self) -> Tensor:
        """[n]: the teacher's log-probability of the tokens; 0 without a teacher."""
        if self.teacher_logp is None:
            return self.student_logp.new_zeros(len(self.token_ids))
        return self.teacher_logp.gather(1, self.token_ids[:, None])[:, 0]


@dataclass(frozen=True)
class TokenGrid:
    """Scalars of a whole micro-batch; what stands where `mask` is False means nothing.

    Args:
        student_logp: [B, S] of the tokens, with graph.
        teacher_logp: [B, S] of the tokens, without graph.
        sampler_logp: [B, S] under the distribution that sampled them, or None.
        mask: [B, S] bool, True where a completion token is predicted.
        prompt_rows: [B] int64, the prompt that each row continues; equal values are one group.
        rewards: [B] or None.
        step: where training stands.
        reference_logp: [B, S] of the tokens under the reference model, without graph; None where there is none.
        age: [B] optimizer steps since the row was written; None where all are fresh.
        scores: [B, S] by name: what an `Advantage` asked for in `scores`, without graph.
    """

    student_logp: Tensor
    teacher_logp: Tensor
    sampler_logp: Tensor | None
    mask: Tensor
    prompt_rows: Tensor
    rewards: Tensor | None
    step: Step
    reference_logp: Tensor | None = None
    age: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    def log_ratio(self) -> Tensor:
        """[B, S] without graph: teacher minus student."""
        return self.teacher_logp - self.student_logp.detach()

    def required_reference_logp(self) -> Tensor:
        """The reference model's log-probabilities, for objectives that need a reference."""
        assert self.reference_logp is not None, "an objective with `needs_reference` always gets the reference's scores"
        return self.reference_logp

    def required_rewards(self) -> Tensor:
        """The reward of each row, for objectives that need rewards."""
        assert self.rewards is not None, "an objective with `needs_rewards` always gets rewards"
        return self.rewards

    def required_sampler_logp(self) -> Tensor:
        """The sampler's log-probabilities; raises `ConfigurationError` where the rollout kept none."""
        if self.sampler_logp is None:
            raise ConfigurationError(
                "Importance weights need the sampler's log-probabilities, but the rollout has rows that nobody "
                "sampled. Use a rollout that samples every row, or switch the importance weights off."
            )
        return self.sampler_logp
