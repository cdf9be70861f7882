"""A teacher that follows the student."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from veto_pl.core.bounds import UnitInterval
from veto_pl.models.initialisation import TINY, RandomWeights
from veto_pl.models.sharding import local_part, resharded
from veto_pl.models.twins import with_own_adapter
from veto_pl.models.wrapping import Wrapping
from veto_pl.parts.schedules import value_at
from veto_pl.seams import ModelSource, Schedule, Step
from veto_pl.seams.models import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veto_pl.seams import LanguageModel


def move_towards(teacher: nn.Module, student: nn.Module, weight: float) -> None:
    """Move the weights that `student` trains a share `weight` of the way from the teacher's to its own, in place."""
    with torch.no_grad():
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            if new.requires_grad:
                local_part(old).lerp_(local_part(new).to(old.dtype), weight)


@dataclass(frozen=True)
class MovingAverage(Wrapping):
    r"""A teacher that is an exponential moving average of the student.

    .. math:: \theta_T \leftarrow d\,\theta_T + (1 - d)\,\theta_S \quad \text{after every optimizer step}

    It is saved in checkpoints, and stays in its own dtype: in bfloat16 a step below 1/256 of a weight is lost.

    Of a student with an adapter only the adapter is averaged, its factors one by one, which is not the average of their
    products. Where `source` is the student's own, the base is the student's too, and takes no memory of its own (not
    where models are sharded).

    Args:
        source: the model that it starts from, usually the student's own source.
        decay: d, a number in [0, 1] or a schedule; 1 keeps the start, 0 is the student of the last step.

    References:
        arXiv 1703.01780; for distillation arXiv 2601.19897
    """

    decay: UnitInterval | Schedule = 0.99
    moves = True

    @classmethod
    def examples(cls) -> tuple["MovingAverage", ...]:
        return (cls(RandomWeights(dimensions=TINY)),)

    def load(self) -> "PreTrainedModel":
        return self.source.load()

    def skeleton(self) -> "PreTrainedModel":
        return self.source.skeleton()

    def stored(self) -> StoredWeights | None:
        return self.source.stored()

    def resolved(self, student: ModelSource) -> ModelSource:
        own = self.source.resolved(student)
        shared = own.frozen_base is not None and own == student
        return _BesideStudent(own, self.decay) if shared else super().resolved(student)

    def follow(self, teacher: "LanguageModel", student: "LanguageModel", step: Step) -> None:
        weight = 1 - value_at(self.decay, step.index, step.total)
        with resharded(teacher), resharded(student):
            move_towards(teacher, student, weight)


@dataclass(frozen=True)
class _BesideStudent(MovingAverage):
    """The average of an adapter, around the base of the student."""

    def beside(self, student: "LanguageModel") -> "LanguageModel | None":
        if student.shards is not None:
            return None
        return with_own_adapter(student)
