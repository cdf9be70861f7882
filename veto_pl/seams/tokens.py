"""The seams of the loss: what an objective sees of the tokens, and the parts that it is composed of.

Vocabulary-sized rows exist inside a chunk of tokens only; over the whole batch there are scalars.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from veto_pl.core.laws import Law
from veto_pl.core.part import Part
from veto_pl.core.scores import TopKScores
from veto_pl.core.step import Step
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.advantages import row_mean
from veto_pl.functional.compiled_numbers import Number
from veto_pl.functional.differentiation import by_autograd
from veto_pl.functional.order import first_of_group
from veto_pl.functional.supports import top_k_with_tail

T = TypeVar("T")


class Schedule(Part, ABC):
    """A number that changes over the run."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """Return the value after `step` of `total` optimizer steps."""

    def with_tensors(self, number: Number, step: Step) -> Schedule:
        """Return its present value, as a schedule that never changes."""
        return _Present(number(self(step.index, step.total)))


@dataclass(frozen=True, eq=False)
class _Present(Schedule):
    """The value of a schedule at one step, as a tensor, of which a compiled kernel knows no more than its shape."""

    value: Tensor

    def __call__(self, step: int, total: int) -> float:
        return self.value  # type: ignore[return-value]  # formulas take either


class Support(Part, ABC):
    """The outcomes that student and teacher are compared on."""

    def kept_ids(self) -> int | None:
        """Return how many likeliest ids are outcomes of their own; None where that is not limited."""
        return None

    def keeping(self, ids: int) -> Support:
        """Return the same support with no more than so many `kept_ids`, for vocabularies that have few."""
        return self

    @abstractmethod
    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Map student and teacher log-probabilities, [N, V] each, to [N, K] each, both normalised."""


class Target(Part, ABC):
    """The distribution that the student is drawn to."""

    laws = frozenset({Law.NORMALISED, Law.PERMUTATION_INVARIANT})

    @abstractmethod
    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        """Return the target's normalised log-probabilities [N, K]."""


class Divergence(Part, ABC):
    """A dissimilarity of two distributions."""

    laws = frozenset({Law.ZERO_AT_EQUALITY, Law.NON_NEGATIVE, Law.PERMUTATION_INVARIANT})

    @abstractmethod
    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        """Map log-probabilities [N, K] and [N, K] to the divergence [N], in nats."""

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value [N] and its gradient [N, K] in the student's logits.

        By default autograd finds the gradient; override it with a closed form.
        """
        return by_autograd(self)(student_logp, target_logp)


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
        turn_ids: [n] int64, the agent's turn that each token belongs to; None where every completion is one turn.
    """

    student_logp: Tensor
    teacher_logp: Tensor | None
    token_ids: Tensor
    sequence_rows: Tensor
    step: Step
    stored: TopKScores | None = None
    ahead: Mapping[str, Tensor] = field(default_factory=dict)
    turn_ids: Tensor | None = None
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Return what `compute` does, which is done once for these rows, such as for the loss and for its metrics.

        It is done anew for rows that were made of these, as where the student's have a graph.
        """
        if name not in self._known:
            self._known[name] = compute()
        found: T = self._known[name]
        return found

    def token_logp(self) -> Tensor:
        """Return the student's log-probability of the tokens, [n], in the graph of `student_logp`."""
        return self.student_logp.gather(1, self.token_ids[:, None])[:, 0]

    def required_teacher_logp(self) -> Tensor:
        """Return the teacher's log-probabilities [n, V], for objectives that need a teacher.

        Raises:
            ConfigurationError: the teacher is a stored or served one, which has not told them.
        """
        if self.teacher_logp is None and self.stored is not None:
            raise ConfigurationError(
                "The objective reads the teacher's probability of every id, but it has a stored or served teacher, "
                "which tells its likeliest ids only. Use a live teacher."
            )
        assert self.teacher_logp is not None, "an objective with `needs_teacher` always gets the teacher's rows"
        return self.teacher_logp

    def outcomes(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of student and teacher, [n, K] each, on the outcomes of `support`.

        Where a stored teacher was asked, the outcomes are those that it kept.
        """
        if self.stored is not None:
            return top_k_with_tail(self.student_logp, self.stored.ids), self.stored.logp
        return support(self.student_logp, self.required_teacher_logp())

    def teacher_token_logp(self) -> Tensor:
        """Return the teacher's log-probability of the tokens, [n]; 0 without a teacher, NaN where a stored one has not
        told it.
        """
        if self.stored is not None:
            told = self.stored.sampled_logp
            return torch.full_like(self.student_logp[:, 0], math.nan) if told is None else told
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
        turn_ids: [B, S] int64, the agent's turn that each token belongs to, 0 off the completion; None where every
            completion is one turn.
        episodes: [B] int64, equal on rows that are turns of one episode; None where every row is one.
        contrast_logp: [K, B, S] of the tokens under the teacher in each of the objective's `contrasts`, without graph;
            -inf on rows to which that one, or the objective's own context, has nothing to tell. None without any.
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
    turn_ids: Tensor | None = None
    episodes: Tensor | None = None
    contrast_logp: Tensor | None = None

    def counted_once(self, counted: Tensor) -> Tensor:
        """Return [B] bool: the rows that are `counted` ([B] bool), but of each episode only the first of them.

        What compares the completions of a prompt compares these rows: a long episode counts once, however many it has.
        """
        if self.episodes is None:
            return counted
        rows = torch.arange(len(counted), device=counted.device)
        return counted & (first_of_group(self.episodes, counted) == rows)

    def of_episodes(self, values: Tensor, counted: Tensor) -> Tensor:
        """Return [B] values of the rows that are `counted_once`, each on all rows of its episode."""
        return values if self.episodes is None else values[first_of_group(self.episodes, counted)]

    def completion_mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of values over the tokens of each episode, [B], the same on all its rows.

        Args:
            values: [B, S].
            mask: [B, S] bool; an episode without tokens has the mean 0.
        """
        if self.episodes is None:
            return row_mean(values, mask)
        same, lengths = self.episodes[:, None] == self.episodes, mask.sum(1)
        totals = torch.where(same, values.masked_fill(~mask, 0.0).sum(1), 0.0).sum(1)
        return totals / torch.where(same, lengths, 0).sum(1).clamp_min(1)

    def log_ratio(self) -> Tensor:
        """Return the teacher's minus the student's log-probability of the tokens, [B, S], without graph."""
        return self.teacher_logp - self.student_logp.detach()

    def required_reference_logp(self) -> Tensor:
        """Return the reference model's log-probabilities [B, S], for objectives that need a reference."""
        assert self.reference_logp is not None, "an objective with `needs_reference` always gets the reference's scores"
        return self.reference_logp

    def required_rewards(self) -> Tensor:
        """Return the reward of each row, [B], for objectives that need rewards."""
        assert self.rewards is not None, "an objective with `needs_rewards` always gets rewards"
        return self.rewards

    def required_contrast_logp(self) -> Tensor:
        """Return the contrasts' log-probabilities [K, B, S]; raise `ConfigurationError` where there are none."""
        if self.contrast_logp is None:
            raise ConfigurationError(
                "The advantage compares what a teacher says under several contexts, but the objective has no "
                "`contrasts`. Take an objective that has them, such as `RLCSD`."
            )
        return self.contrast_logp

    def required_sampler_logp(self) -> Tensor:
        """Return the sampler's log-probabilities [B, S]; raise `ConfigurationError` where the rollout kept none."""
        if self.sampler_logp is None:
            raise ConfigurationError(
                "Importance weights need the sampler's log-probabilities, but the rollout has rows that nobody "
                "sampled. Use a rollout that samples every row, or switch the importance weights off."
            )
        return self.sampler_logp


class TokenWeighting(Part, ABC):
    """How much each token counts; the denominator stays the number of tokens."""

    @abstractmethod
    def __call__(self, rows: TokenRows) -> Tensor:
        """Return the weights [N] of a chunk of tokens."""


class Advantage(Part, ABC):
    """The credit of each sampled token in a policy-gradient term.

    What it `needs`, and whether it `compares_completions`, holds for the objective that has it (see `Objective`).

    With `needs_every_id` it reads more of the teacher than its log-probability of the sampled token.
    """

    needs_every_id = False
    needs_reference = False
    needs_rewards = False
    compares_completions = False

    @property
    def laws(self) -> frozenset[Law]:
        """Return what holds for an objective with this advantage; an advantage that couples rows promises nothing."""
        return frozenset({Law.SPLIT_INVARIANT})

    def of_one_token(self) -> Advantage:
        """Return the credit of a token without others, as `explain` draws it; a mean over tokens is left out."""
        return self

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        """Return, by name, [n] numbers that need the distributions of a few tokens.

        The call finds them as [B, S] in `grid.scores`.
        """
        return {}

    @abstractmethod
    def __call__(self, grid: TokenGrid) -> Tensor:
        """Return the credit of each token, [B, S]; the values where `grid.mask` is False are ignored."""
