"""A frozen model that is made of the student's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.twins import without_adapter
from veto_pl.models.wrapping import Wrapping
from veto_pl.seams import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from veto_pl.seams import LanguageModel


@dataclass(frozen=True)
class StudentBase(ModelSource):
    """The student without its adapter, as a teacher or a reference: what it was before it was trained.

    It takes no memory for weights, since they are the student's own.
    """

    @classmethod
    def examples(cls) -> tuple[StudentBase, ...]:
        return ()

    def resolved(self, student: ModelSource) -> ModelSource:
        if student.frozen_base is None:
            raise ConfigurationError(
                f"`StudentBase` needs a student with an adapter, but `model.student` is a `{type(student).__name__}`, "
                "whose weights are all trained. Take a `Lora` student, or name the model that it starts from."
            )
        return _BaseOf(student.frozen_base)

    def config(self) -> PretrainedConfig:
        raise self._unresolved()

    def load(self) -> PreTrainedModel:
        raise self._unresolved()

    def _unresolved(self) -> ConfigurationError:
        return ConfigurationError("`StudentBase` is the model of no file: it belongs to the student of a run.")


@dataclass(frozen=True)
class _BaseOf(Wrapping):
    """The base of a certain student, which is the model of `source`."""

    def load(self) -> PreTrainedModel:
        return self.source.load()

    def skeleton(self) -> PreTrainedModel:
        return self.source.skeleton()

    def beside(self, student: LanguageModel) -> LanguageModel:
        base = without_adapter(student)
        if trained := [name for name, weight in base.named_parameters() if weight.requires_grad]:
            raise ConfigurationError(
                f"`StudentBase` needs a base that stays as it is, but {len(trained)} of its weights are trained, for "
                f"instance `{trained[0]}`. Name the model that the student starts from."
            )
        return base
