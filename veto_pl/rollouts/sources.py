"""Who writes the completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import UnitInterval
from veto_pl.core.sampling import SEVERAL, Sampling, draw_id
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.divergences import log_mixture
from veto_pl.parts.schedules import value_at
from veto_pl.rollouts.decoding import decode
from veto_pl.rollouts.endings import reference_completions
from veto_pl.rollouts.engines import DecodeLoop, require_decode_loop
from veto_pl.rollouts.token_buffer import Drawn
from veto_pl.seams import Engine, Models, PromptBatch, RolloutSource, Schedule, Sequences, Step, Writing
from veto_pl.seams.rollouts import TEACHER


@dataclass(frozen=True)
class FromDataset(RolloutSource):
    """The reference completions of the task. Rows without one train on nothing."""

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        return reference_completions(prompts, models)


@dataclass(frozen=True)
class FromStudent(RolloutSource):
    """The student samples: on-policy.

    Args:
        sampling: temperature, truncation, lengths and counts.
        engine: what runs the model.
    """

    sampling: Sampling = Sampling()
    engine: Engine = DecodeLoop()

    @classmethod
    def examples(cls) -> tuple["FromStudent", ...]:
        return cls(), cls(SEVERAL)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        sampling = self.sampling.ending_with(prompts.stop)
        return self.engine.generate(prompts, models.student, sampling, models, step, on_policy=True)


@dataclass(frozen=True)
class FromTeacher(RolloutSource):
    """The teacher samples, as in sequence-level distillation.

    Args:
        sampling: temperature, truncation, lengths and counts.
        engine: what runs the model.
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.

    References:
        arXiv 1606.07947
    """

    sampling: Sampling = Sampling()
    engine: Engine = DecodeLoop()
    teacher: str = TEACHER

    @classmethod
    def examples(cls) -> tuple["FromTeacher", ...]:
        return (cls(SEVERAL),)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        sampling, teacher = self.sampling.ending_with(prompts.stop), models.teacher_named(self.teacher)
        # With the student's random numbers, a student that has come close to the teacher would write the same text, and
        # so would teachers that are alike.
        aside = step.aside(TEACHER if self.teacher == TEACHER else f"{TEACHER} {self.teacher}")
        return self.engine.generate(prompts, teacher, sampling, models, aside, on_policy=False)

    def writings(self) -> tuple[Writing, ...]:
        return (Writing((self.teacher,), self.sampling, self.engine),)


@dataclass(frozen=True)
class TeacherMixed(RolloutSource):
    r"""Each token is drawn from a mixture of teacher and student, :math:`\alpha p_T + (1 - \alpha) p_S`.

    Args:
        teacher_fraction: alpha, a number in [0, 1] or a schedule.
        sampling: shapes both distributions before they are mixed; lengths and counts.
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.

    References:
        arXiv 2306.08543, section 2.2
    """

    teacher_fraction: UnitInterval | Schedule = 0.2
    sampling: Sampling = Sampling()
    teacher: str = TEACHER

    @classmethod
    def examples(cls) -> tuple["TeacherMixed", ...]:
        return (cls(0.5, SEVERAL),)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        writers = (models.teacher_named(self.teacher), models.student)
        require_decode_loop(type(self).__name__, writers)
        fraction = value_at(self.teacher_fraction, step.index, step.total)

        def draw(logits: Sequence[Tensor], uniform: Tensor, rows: Tensor, *, unread: bool = False) -> Drawn:
            teacher_logp, student_logp = (self.sampling.shape(values, unread=unread) for values in logits)
            return Drawn(*draw_id(log_mixture(teacher_logp, student_logp, fraction).exp(), uniform))

        sampling, recordable = self.sampling.ending_with(prompts.stop), partial(draw, unread=True)
        return decode(prompts, writers, draw, sampling, models, step, on_policy=True, recordable=recordable)

    def writings(self) -> tuple[Writing, ...]:
        return (Writing((self.teacher, "student"), self.sampling),)

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        return log_mixture(teacher, student, value_at(self.teacher_fraction, step.index, step.total))


@dataclass(frozen=True)
class Mixture(RolloutSource):
    """Some prompts are completed by one source, the others by another.

    Args:
        first: completes a prompt with probability `fraction`.
        second: completes it otherwise.
        fraction: a number in [0, 1] or a schedule.
        coin: one coin for all prompts of an optimizer step, on every rank, or one for each prompt.

    References:
        arXiv 2306.13649, algorithm 1
    """

    first: RolloutSource = FromStudent()
    second: RolloutSource = FromDataset()
    fraction: UnitInterval | Schedule = 0.5
    coin: Literal["batch", "sample"] = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if stored := [type(source).__name__ for source in (self.first, self.second) if source.stored_teacher]:
            raise ConfigurationError(
                f"`Mixture` cannot hold `{stored[0]}`: the rows of the other source have no stored scores. Use it as "
                "the `rollout` of an objective of its own, and add both by `Sum`."
            )

    @classmethod
    def examples(cls) -> tuple["Mixture", ...]:
        return cls(FromStudent(SEVERAL), fraction=0.8), cls(FromStudent(SEVERAL), coin="sample")

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        fraction = value_at(self.fraction, step.index, step.total)
        heads = self._toss(prompts, fraction, step)
        # Prompts of another rank may fall on a source that has none here, and sharded models need every rank.
        coupled = models.sharded or any(w.engine is not None and w.engine.couples_ranks for w in self.writings())
        all_ranks = coupled and self.coin == "sample" and 0 < fraction < 1
        parts = []
        for source, chosen in ((self.first, heads), (self.second, ~heads)):
            rows = chosen.nonzero()[:, 0].to(prompts.input_ids.device)
            if len(rows) or all_ranks or not len(prompts):
                part = source(prompts.rows(rows), models, step)
                parts.append(part.continuing(prompts, rows))
        return Sequences.concatenate(parts).in_prompt_order()

    def delegates(self) -> tuple[RolloutSource, ...]:
        """Return both, or the one that has every prompt."""
        if self.fraction in (0, 1):
            return (self.first,) if self.fraction == 1 else (self.second,)
        return (self.first, self.second)

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        first, second = (one.token_distribution(student, teacher, step) for one in (self.first, self.second))
        return log_mixture(first, second, value_at(self.fraction, step.index, step.total))

    def _toss(self, prompts: PromptBatch, fraction: float, step: Step) -> Tensor:
        """Return [B] bool: the prompts that the first source completes."""
        numbers = prompts.numbers if self.coin == "sample" else torch.zeros(1, dtype=torch.int64)
        return (step.uniform(f"mixture {self!r}", numbers) < fraction).expand(len(prompts))
