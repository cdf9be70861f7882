"""What is about to run, as the checks and the parts that they ask read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from typing import Any, Protocol

from lightning.pytorch import Callback
from torch import nn
from torch.optim import Optimizer

from veto_pl.core.architectures import text_config
from veto_pl.core.nested import Path, setting, walk
from veto_pl.data import PromptDataModule
from veto_pl.exceptions import VetoError
from veto_pl.rollouts import Sampling
from veto_pl.seams import (
    Engine,
    ModelSource,
    Objective,
    Panel,
    PlayingSource,
    Reward,
    RolloutSource,
    Schedule,
    Task,
    TeacherSource,
    Template,
    TokenizerSource,
)
from veto_pl.seams.teacher_names import setting_of
from veto_pl.training.measured import compared_apart, teacher_folders


class Checked(Protocol):
    """What checks read of the module that is about to run."""

    objective: Objective
    student_source: ModelSource
    teacher_source: TeacherSource | None
    teacher_sources: Mapping[str, TeacherSource]
    panel: Panel | None
    reference_source: ModelSource | None
    tokenizer_source: TokenizerSource | None
    optimizer: Callable[..., Optimizer]
    lr_schedule: Schedule
    evaluation: Sampling
    evaluation_engine: Engine | None
    evaluation_rollout: PlayingSource | None
    playing: PlayingSource | None
    validation_metrics: nn.ModuleDict


@dataclass(frozen=True)
class RunSetup:
    """A run as it is configured; nothing of it has been loaded. Parts see it as `veto_pl.seams.Setup`.

    Args:
        module: with the sources of the models.
        data: with the task.
        trainer: the trainer's settings by name; what is not known is left out, and not checked.
        stage: fit, validate, test or predict.
        callbacks: by the path of their settings.
    """

    module: Checked
    data: PromptDataModule
    trainer: Mapping[str, Any]
    stage: str = "fit"
    callbacks: Mapping[str, Callback] = field(default_factory=dict)

    def settings(self) -> Iterator[tuple[str, Any]]:
        """Yield everything that the objective was given, at any depth, with its path in the YAML."""
        return _settings(self.module.objective, "model.objective")

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Yield everything that the objective is composed of, with its path in the YAML."""
        return ((path, part) for path, part in self.settings() if is_dataclass(part))

    def everything(self) -> Iterator[tuple[str, Any]]:
        """Yield what the stage is composed of: models, data and metrics, and the objective where it is trained on."""
        module, data = self.module, self.data
        if self.stage == "fit":
            yield from self.settings()
            yield from _settings(module.lr_schedule, "model.lr_schedule")
        for path, source in self._all_sources.items():
            yield from _settings(source, path)
        yield from _settings(module.tokenizer_source, "model.tokenizer")
        yield from _settings(module.evaluation_engine, "model.evaluation_engine")
        yield from _settings(module.evaluation_rollout, "model.evaluation_rollout")
        for places, part in walk(data.task):
            if not isinstance(part, Reward) or not (data.reward is not None or _judged_by_others(places)):
                yield setting(places, "data.task"), part
        yield from _settings(data.reward, "data.reward")
        yield from _settings(data.template, "data.template")
        yield from (("model.metrics", metric) for metric in module.validation_metrics.values())

    def sources(self) -> Iterator[RolloutSource]:
        """Yield every rollout that may write, which those that delegate do not do themselves."""
        for source in self.objective.sources:
            yield from _writing(source)

    @property
    def objective(self) -> Objective:
        """The objective."""
        return self.module.objective

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    @property
    def template(self) -> Template:
        """The template of the rows."""
        return self.data.row_template

    @property
    def evaluation(self) -> Sampling:
        """How the student answers in a validation."""
        return self.module.evaluation

    @property
    def metrics(self) -> list[str]:
        """What a validation measures."""
        measured, module = self.module.validation_metrics, self.module
        folders = ["validation", *(f"validation/{source}" for source in self.task.sources)]
        models = [name for name, source in module.teacher_sources.items() if isinstance(source, ModelSource)]
        apart = teacher_folders(compared_apart(module.panel, self.teachers, models), self.task.sources)
        comparing = [name for name, metric in measured.items() if getattr(metric, "needs_teacher", False)]
        by_teacher = [f"validation/{folder}/{name}" for folder in apart.values() for name in comparing]
        return [*(f"{folder}/{name}" for folder in folders for name in measured), *by_teacher]

    @property
    def validates(self) -> bool:
        """Whether there is a validation."""
        return self.trainer.get("limit_val_batches") != 0

    @property
    def rewards_for(self) -> str:
        """The class that learns from rewards of the task; empty where none does."""
        asked = (one for source in self.objective.rewarded_sources for one in _writing(source))
        learns = any(not one.brings_rewards for one in asked) or any(one.needs_rewards for one in self.sources())
        return type(self.objective).__name__ if self.stage == "fit" and learns else ""

    @property
    def references_for(self) -> str:
        """The class that reads references; empty where none does."""
        if self.stage != "fit":
            return ""
        unwritten = (one for one in self.sources() if any(not writing.writers for writing in one.writings()))
        return next((type(source).__name__ for source in unwritten), "")

    @property
    def rollouts_for(self) -> str:
        """The class by which a model writes; empty where none does."""
        if self.stage != "fit":
            return ""
        written = (one for one in self.sources() if any(writing.writers for writing in one.writings()))
        return next((type(source).__name__ for source in written), "")

    @cached_property
    def models(self) -> dict[str, Any]:
        """The architecture of each model by its path, or the error that reading it gave. No weights are read."""
        sources = self._all_sources.items()
        return {path: _architecture(source) for path, source in sources if isinstance(source, ModelSource)}

    @property
    def text_parts(self) -> dict[str, Any]:
        """The part of each architecture that describes the decoder of text; those that cannot be read are left out."""
        return {path: text_config(config) for path, config in self.models.items() if not isinstance(config, Exception)}

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of the teachers."""
        return tuple(self.module.teacher_sources)

    @property
    def vocab_size(self) -> int | None:
        """Ids of the model that has the fewest; None where no model says."""
        sizes = [getattr(config, "vocab_size", None) for config in self.text_parts.values()]
        return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)

    @property
    def _all_sources(self) -> dict[str, TeacherSource]:
        module = self.module
        teachers = {setting_of(name): source for name, source in module.teacher_sources.items()}
        reference = {} if module.reference_source is None else {"model.reference": module.reference_source}
        return {"model.student": module.student_source, **teachers, **reference}


def _architecture(source: ModelSource) -> Any:
    try:
        return source.config()
    except VetoError as error:
        return error


def _judged_by_others(path: Path) -> bool:
    """Return whether what a task is set in has a reward of its own, so that the task's is not asked."""
    return any(place.field == "task" and getattr(place.around, "reward", None) is not None for place in path)


def _settings(part: Any, root: str) -> Iterator[tuple[str, Any]]:
    return ((setting(path, root), value) for path, value in walk(part))


def _writing(source: RolloutSource) -> Iterator[RolloutSource]:
    delegates = source.delegates()
    for one in delegates:
        yield from _writing(one)
    if not delegates:
        yield source
