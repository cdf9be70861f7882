"""Who writes the completions."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.divergences import log_mixture
from veto_pl.models.causal_lm import CausalLM
from veto_pl.rollouts.decoding import decode, mixed, sampled_from
from veto_pl.rollouts.sampling import Sampling
from veto_pl.schedules import value_at
from veto_pl.seams import RolloutSource, Schedule
from veto_pl.types import Models, PromptBatch, Sequences, Step


@dataclass(frozen=True)
class FromDataset(RolloutSource):
    """The reference completions of the task. Rows without one train on nothing."""

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        return Sequences.join(prompts, prompts.completion_ids, prompts.completion_mask)


@dataclass(frozen=True)
class FromStudent(RolloutSource):
    """The student samples: on-policy.

    Args:
        sampling: temperature, truncation, lengths and counts.
    """

    sampling: Sampling = Sampling()

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        return _sampled_by(models.student, prompts, models, self.sampling, step, on_policy=True)


@dataclass(frozen=True)
class FromTeacher(RolloutSource):
    """The teacher samples, as in sequence-level distillation.

    Args:
        sampling: temperature, truncation, lengths and counts.

    References:
        arXiv 1606.07947
    """

    sampling: Sampling = Sampling()

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        return _sampled_by(models.required_teacher(), prompts, models, self.sampling, step, on_policy=False)


@dataclass(frozen=True)
class TeacherMixed(RolloutSource):
    r"""Each token is drawn from a mixture of teacher and student, :math:`\alpha p_T + (1 - \alpha) p_S`.

    Args:
        teacher_fraction: alpha, a number in [0, 1] or a schedule.
        sampling: shapes both distributions before they are mixed; lengths and counts.

    References:
        arXiv 2306.08543, section 2.2
    """

    teacher_fraction: float | Schedule = 0.2
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        _check_fraction("TeacherMixed.teacher_fraction", self.teacher_fraction)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        teacher = models.required_teacher()
        fraction = value_at(self.teacher_fraction, step.index, step.total)
        next_token = mixed(
            sampled_from(teacher, self.sampling),
            sampled_from(models.student, self.sampling),
            lambda teacher_logp, student_logp: log_mixture(teacher_logp, student_logp, fraction),
        )
        generator = step.generator("rollout", prompts.input_ids.device)
        writers = (teacher, models.student)
        return decode(prompts, next_token, self.sampling, models, generator, writers=writers, on_policy=True)


@dataclass(frozen=True)
class Mixture(RolloutSource):
    """Some prompts are completed by one source, the others by another. Every rank draws the same coins.

    Args:
        first: completes a prompt with probability `fraction`.
        second: completes it otherwise.
        fraction: a number in [0, 1] or a schedule.
        coin: one coin for the whole batch, or one for each sample.

    References:
        arXiv 2306.13649, algorithm 1
    """

    first: RolloutSource = FromStudent()
    second: RolloutSource = FromDataset()
    fraction: float | Schedule = 0.5
    coin: Literal["batch", "sample"] = "batch"

    def __post_init__(self) -> None:
        _check_fraction("Mixture.fraction", self.fraction)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        parts = []
        heads = self._toss(len(prompts), step)
        for source, chosen in ((self.first, heads), (self.second, ~heads)):
            rows = chosen.nonzero()[:, 0].to(prompts.input_ids.device)
            if len(rows):
                part = source(prompts.rows(rows), models, step)
                parts.append(part.continuing(prompts, rows))
        return Sequences.concatenate(parts).in_prompt_order()

    def _toss(self, size: int, step: Step) -> Tensor:
        """[size] bool. The generator is shared, so that no rank generates while another does not."""
        count = 1 if self.coin == "batch" else size
        coins = torch.rand(count, generator=step.generator("mixture", shared=True), dtype=torch.float64)
        return (coins < value_at(self.fraction, step.index, step.total)).expand(size)


def _sampled_by(
    model: CausalLM, prompts: PromptBatch, models: Models, sampling: Sampling, step: Step, *, on_policy: bool
) -> Sequences:
    generator = step.generator("rollout", prompts.input_ids.device)
    next_token = sampled_from(model, sampling)
    return decode(prompts, next_token, sampling, models, generator, writers=(model,), on_policy=on_policy)


def _check_fraction(name: str, fraction: float | Schedule) -> None:
    if not isinstance(fraction, Schedule) and not (0 <= fraction <= 1 and math.isfinite(fraction)):
        raise ConfigurationError(f"`{name}` must lie in [0, 1], got {fraction}.")
