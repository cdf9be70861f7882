"""Credit of sampled tokens, for the policy-gradient term of an objective."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor

from veto_pl.core.bounds import AboveZero, Count, OpenUnitInterval, Positive, PositiveShare, UnitInterval
from veto_pl.core.ranks import sum_over_ranks
from veto_pl.functional.advantages import (
    discounted_sum,
    extrapolated_ratio,
    future_mean,
    most_uncertain,
    reward_floor,
    whiten,
)
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.divergences import reverse_kl
from veto_pl.functional.order import group_advantage, group_gap, group_mean, margin_mask, margin_shift
from veto_pl.parts.schedules import Linear, value_at
from veto_pl.seams import Advantage, Law, Schedule
from veto_pl.seams.tokens import TokenGrid, TokenRows

LARGEST = 1e6
"""Of a factor or a shift of a credit: beyond it, float32 has no digits left for the credit itself."""


@dataclass(frozen=True)
class LogRatio(Advantage):
    r"""Credit of the token itself, :math:`\log p_T(y_t) - \log p_S(y_t)`, and of what follows from it.

    .. math:: A_t = \sum_{t' \ge t} \gamma^{t' - t} \left( \log p_T(y_{t'}) - \log p_S(y_{t'}) \right)

    Args:
        discount: gamma in [0, 1]; 0 credits the token with its own log-ratio alone.

    References:
        arXiv 2306.08543
    """

    discount: UnitInterval = 0.0

    @classmethod
    def examples(cls) -> tuple["LogRatio", ...]:
        return cls(), cls(0.9), cls(1.0)

    def __call__(self, grid: TokenGrid) -> Tensor:
        ratio = grid.log_ratio()
        return discounted_sum(ratio, grid.mask, self.discount) if self.discount else ratio


@dataclass(frozen=True)
class FutureLogRatio(Advantage):
    r"""MiniLLM's long-term return: the mean log-ratio of the tokens after this one.

    Args:
        scale: divides the log-ratio of each token.
        clip: bound of the scaled log-ratio of each token, in both directions.
        whitened: zero mean and unit variance over the tokens of the micro-batch, on all ranks.

    References:
        arXiv 2306.08543
    """

    scale: AboveZero = 0.5
    clip: AboveZero = 100.0
    whitened: bool = True

    @property
    def laws(self) -> frozenset[Law]:
        """Return what holds with this advantage: whitening couples the rows of a micro-batch."""
        return frozenset() if self.whitened else super().laws

    def __call__(self, grid: TokenGrid) -> Tensor:
        rewards = (grid.log_ratio() / self.scale).clamp(-self.clip, self.clip)
        returns = future_mean(rewards, grid.mask)
        return whiten(returns, grid.mask, all_reduce=sum_over_ranks) if self.whitened else returns


@dataclass(frozen=True)
class WithReward(Advantage):
    r"""Another advantage, plus what the completion is better than the others of its prompt.

    .. math:: A_t + w\, (r - \bar r)

    with the mean reward :math:`\bar r` of the prompt's completions that have tokens, this one included: n completions
    give (n - 1) / n of the gradient of the expected reward, and one completion gives none. An episode of several rows
    is one completion. It is GRPO's credit without the division by the standard deviation.

    Args:
        of: the other advantage.
        weight: w.
        scale: `none`, or `std` to divide the reward's part by the unbiased standard deviation of the prompt's
            completions, as GRPO does.

    References:
        arXiv 2402.03300
    """

    of: Advantage = LogRatio()
    weight: Annotated[float, Interval(ge=0, le=LARGEST)] = 1.0
    scale: Literal["none", "std"] = "none"

    needs_rewards = True
    compares_completions = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for need in ("needs_reference", "needs_every_id"):
            object.__setattr__(self, need, getattr(self.of, need))

    @classmethod
    def examples(cls) -> tuple["WithReward", ...]:
        return cls(), cls(CentredLogRatio(2), 0.5), cls(Extrapolated(1.5)), cls(scale="std")

    @property
    def laws(self) -> frozenset[Law]:
        """Return the laws of the other advantage: the completions of a prompt are never split."""
        return self.of.laws

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        return self.of.scores(rows)

    def __call__(self, grid: TokenGrid) -> Tensor:
        rewards = grid.required_rewards()
        counted = grid.counted_once(grid.mask.any(1))
        if self.scale == "std":
            better = group_advantage(rewards, grid.prompt_rows, counted)
        else:
            better = rewards - group_mean(rewards, grid.prompt_rows, counted)
        return self.of(grid) + self.weight * better[:, None]


@dataclass(frozen=True)
class CentredLogRatio(Advantage):
    r"""The log-ratio minus its mean under the student, which is known in closed form.

    .. math:: A_t = \log p_T(y_t) - \log p_S(y_t) + \mathrm{KL}(p_S \Vert p_T)_t

    Args:
        top_k: the KL is taken on the student's k likeliest ids, both models renormalised there; None takes all ids.

    References:
        arXiv 2605.07865
    """

    top_k: Count | None = None

    needs_every_id = True

    @classmethod
    def examples(cls) -> tuple["CentredLogRatio", ...]:
        return cls(), cls(2)

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        student, teacher = rows.student_logp, rows.required_teacher_logp()
        if self.top_k is not None and self.top_k < student.shape[-1]:
            ids = student.topk(self.top_k, -1).indices
            student, teacher = (logp.gather(-1, ids).log_softmax(-1) for logp in (student, teacher))
        return {"kl": reverse_kl(student, teacher)}

    def __call__(self, grid: TokenGrid) -> Tensor:
        return grid.log_ratio() + grid.scores["kl"]


@dataclass(frozen=True)
class Extrapolated(Advantage):
    r"""Credit that leads beyond the teacher T, away from the reference B.

    .. math:: A_t = \lambda \left( \log p_T(y_t) - \log p_B(y_t) \right) - \left( \log p_S(y_t) - \log p_B(y_t) \right)

    Args:
        extrapolation: lambda, a number or a schedule; 1 is the log-ratio, for any reference.

    References:
        arXiv 2602.12125
    """

    extrapolation: Annotated[float, Interval(ge=0, le=LARGEST)] | Schedule = 1.25

    needs_reference = True

    @classmethod
    def examples(cls) -> tuple["Extrapolated", ...]:
        return cls(), cls(Linear(1.0, 2.0))

    def __call__(self, grid: TokenGrid) -> Tensor:
        strength = value_at(self.extrapolation, grid.step.index, grid.step.total)
        student = grid.student_logp.detach()
        return extrapolated_ratio(grid.teacher_logp, student, grid.required_reference_logp(), strength)


@dataclass(frozen=True)
class OrderConsistent(Advantage):
    r"""The log-ratio, corrected where the teacher prefers wrong completions of a prompt to correct ones.

    .. math:: a_i = \mathrm{mean}_t \left( \log p_T - \log p_S \right)_{i,t}, \qquad
        \mathrm{mean}_{correct}\, a - \mathrm{mean}_{wrong}\, a \ge \delta \text{ within the completions of a prompt}

    A completion is correct where its reward is 1. Prompts whose completions are all correct or all wrong are left
    alone.

    Args:
        margin: delta, in nats per token.
        method: `shift` adds a constant to all tokens of a completion, `mask` leaves out whole completions.
        mode: `mean` compares the means of the two classes, `minmax` the worst correct completion with the best wrong
            one.
        direction: who is shifted: `both` by half, or one class by all of it.
        min_retain: the share of each class that `mask` keeps at least, in [0, 1].
        outlier: tokens whose log-ratio is at least as large in size get no credit, in nats; null keeps all.

    References:
        arXiv 2605.03677
    """

    margin: Annotated[float, Interval(ge=0, le=LARGEST)] = 0.4
    method: Literal["shift", "mask"] = "shift"
    mode: Literal["mean", "minmax"] = "mean"
    direction: Literal["both", "correct_up", "incorrect_down"] = "both"
    min_retain: UnitInterval = 0.25
    outlier: Positive | None = 10.0

    needs_rewards = True
    compares_completions = True

    @classmethod
    def examples(cls) -> tuple["OrderConsistent", ...]:
        return cls(), cls(method="mask", mode="minmax", outlier=None)

    def __call__(self, grid: TokenGrid) -> Tensor:
        ratio = grid.log_ratio()
        kept = grid.mask if self.outlier is None else grid.mask & ~(ratio.abs() >= self.outlier)
        scores, written, correct = grid.completion_mean(ratio, kept), kept.any(1), grid.required_rewards() == 1
        counted = grid.counted_once(written)
        if self.method == "shift":
            gap = group_gap(scores, correct, grid.prompt_rows, counted, self.mode)
            return (ratio + margin_shift(gap, correct, self.margin, self.direction)[:, None]).masked_fill(~kept, 0.0)
        stays = margin_mask(scores, correct, grid.prompt_rows, counted, self.margin, self.min_retain, self.mode)
        return ratio.masked_fill(~(kept & grid.of_episodes(stays, written)[:, None]), 0.0)


@dataclass(frozen=True)
class RelaxedLogRatio(Advantage):
    r"""REOPOLD's credit: explore first, without strong punishment; refine later, where the student is unsure.

    .. math:: \hat R_t = \max\left( \log p_T(y_t) - \log p_S(y_t),\ \log \tfrac{\lambda}{1 - \lambda} \right)

    Before the switch, tokens below the floor get no credit at all. After it they get the floor, and of each completion
    only the tokens with the highest entropy of the student get any.

    Args:
        mixture: lambda in (0, 1), which sets the floor.
        keep: the share of the tokens of a completion that counts after the switch, in (0, 1].
        switch: the fraction of the run after which refinement begins, in [0, 1].

    References:
        arXiv 2603.11137
    """

    mixture: OpenUnitInterval = 0.2
    keep: PositiveShare = 0.5
    switch: UnitInterval = 0.5

    @classmethod
    def examples(cls) -> tuple["RelaxedLogRatio", ...]:
        return cls(), cls(switch=0.0)

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        return {"entropy": entropy(rows.student_logp)}

    def __call__(self, grid: TokenGrid) -> Tensor:
        ratio, floor = grid.log_ratio(), reward_floor(self.mixture)
        if grid.step.index < self.switch * grid.step.total:
            return ratio.masked_fill(ratio < floor, 0.0)
        counts = most_uncertain(grid.scores["entropy"], grid.mask, self.keep)
        return ratio.clamp_min(floor).masked_fill(~counts, 0.0)
