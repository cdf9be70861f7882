"""What a distillation module has from the trainer that runs it: the template of the data, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from veto_pl.core.mistakes import check_kind
from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import (
    Engine,
    Models,
    ModelSource,
    Objective,
    Panel,
    PlayingSource,
    Rollouts,
    RolloutSource,
    ScoreSource,
    Step,
    TeacherSource,
)  # fmt: skip
from veto_pl.seams.teacher_names import TEACHER, listed, setting_of
from veto_pl.training.measured import add_sources, add_teachers, compared_apart, teacher_folders
from veto_pl.training.teller_checks import check_tellers
from veto_pl.training.template_probe import warn_of_templates


def check_models(objective: Objective, teachers: Mapping[str, TeacherSource], reference: ModelSource | None) -> None:
    """Raise `ConfigurationError` where an objective needs a model that is not given, or is no objective of texts.

    Args:
        objective: says what it needs.
        teachers: all of them, by name.
        reference: the further frozen model, or None.
    """
    check_kind(objective, Objective, "model.objective", "an `Objective`")
    for source in objective.sources:
        check_kind(source, RolloutSource, "model.objective", "an objective of texts, which a `RolloutSource` writes")
    name = type(objective).__name__
    if reference is None and objective.needs_reference:
        raise ConfigurationError(f"`{name}` needs a reference, but `model.reference` is not set. Name one there.")
    asked: list[tuple[str, object]] = [
        (one, panel) for panel in objective.panels for one in panel.asks(tuple(teachers))
    ]
    if objective.needs_teacher and not asked:
        asked = [(TEACHER, objective)]
    written = [(role, source) for source in objective.sources for one in source.writings() for role in one.writers]
    for one, part in (*asked, *written):
        if one not in (*teachers, "student"):
            raise ConfigurationError(_missing(name, one, part, teachers))
    check_tellers(objective, teachers)


def _missing(objective: str, teacher: str, part: object, teachers: Mapping[str, TeacherSource]) -> str:
    """Return the message for a teacher that an objective needs for one of its parts, and that is not given."""
    if not teachers:
        return f"`{objective}` needs a teacher, but `{setting_of(teacher)}` is not set. Name one there."
    several = " To let several teachers read, give it a `panel`, such as `Routed`." if teacher == TEACHER else ""
    return (
        f"`{objective}` needs the teacher `{teacher}` for its `{type(part).__name__}`, but `{setting_of(teacher)}` is "
        f"not set; the run has {listed(teachers)}. Name it there.{several}"
    )


class HostedModule(OwnErrors, L.LightningModule):
    """Measures each data set of a mixture, and says where weights are that were trained in other processes."""

    validation_metrics: nn.ModuleDict
    teacher_sources: Mapping[str, TeacherSource]
    _templates_are_known = False
    objective: Objective
    panel: Panel | None
    models: Models | None
    evaluation_engine: Engine | None
    evaluation_rollout: PlayingSource | None

    @property
    def answering_engine(self) -> Engine | None:
        """What runs the student in evaluations: the engine that was named, or that of its rollouts, or None."""
        sources = self.objective.sources if self.evaluation_rollout is None else (self.evaluation_rollout,)
        writings = (writing for source in sources for writing in source.writings())
        of_rollout = (one.engine for one in writings if one.writers == ("student",) and one.engine is not None)
        return self.evaluation_engine or next(of_rollout, None)

    @property
    def further_teachers(self) -> dict[str, TeacherSource]:
        """Return the sources of `model.teachers`, by name."""
        return {name: source for name, source in self.teacher_sources.items() if name != TEACHER}

    @property
    def model_sources(self) -> dict[str, ModelSource]:
        """Return the sources of all teachers that have a model, by name."""
        return {name: source for name, source in self.teacher_sources.items() if isinstance(source, ModelSource)}

    @property
    def compared_apart(self) -> tuple[str, ...]:
        """Return the teachers that a validation compares with one by one, where there are several."""
        return compared_apart(self.panel, tuple(self.teacher_sources), self.model_sources)

    def look_outside(self) -> None:
        """Let sources of rollouts and of scores look at what they need outside of this process."""
        tokenizer = self.tokenizer
        self.objective.before_loading(tokenizer)
        for source in self.teacher_sources.values():
            if isinstance(source, ScoreSource):
                source.before_loading(tokenizer)

    def keep_teachers_that_move(self, models: Models) -> None:
        """Make submodules of the teachers that change, so that checkpoints hold them."""
        for name, model in models.named_teachers.items():
            if self.model_sources[name].moves:
                self.add_module(name if name == TEACHER else f"{TEACHER}-{name}", model)

    def move_teachers(self, models: Models, step: Step) -> None:
        """Let every teacher follow the student after an optimizer step."""
        for name, model in models.named_teachers.items():
            self.model_sources[name].follow(model, models.student, step)

    def look_at_templates(self, objective: Objective, rollouts: Rollouts, models: Models, step: Step) -> None:
        """Warn once of teachers with a chat template of their own. Collective: call it on every rank."""
        if not self._templates_are_known:
            self._templates_are_known = True
            warn_of_templates(objective, rollouts, models, step)

    def leave_out_comparisons(self, models: Models) -> None:
        """Take away the metrics that compare ids with a teacher's, where those have others; warn once, and name them.

        Where others have the student's ids, the validation compares with these.

        Raises:
            ConfigurationError: a callback follows one of them.
        """
        asked = () if self.panel is None else self.panel.asks(models.teacher_names)
        apart = set(models.tokenizers)
        gone = apart if set(models.comparable) & set(asked) else apart | {""}
        metrics = self.validation_metrics.items() if apart else ()
        compared = [n for n, m in metrics if getattr(m, "needs_teacher", False) and getattr(m, "teacher", "") in gone]
        callbacks = () if self._trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        for name in compared:
            if any(getattr(callback, "monitor", None) == f"validation/{name}" for callback in callbacks):
                raise ConfigurationError(
                    f"A callback follows `validation/{name}`, which compares ids, but {listed(models.tokenizers)} "
                    "reads ids of its own. Follow another metric, such as `validation/accuracy`."
                )
            del self.validation_metrics[name]
        if compared:
            rank_zero_warn(
                f"{listed(models.tokenizers)} reads ids of its own, so these metrics of a validation are left out: "
                f"{listed(compared)}."
            )

    @property
    def template(self) -> Any:
        """The template that makes the prompts of the run; None where the data module has none."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return getattr(data, "row_template", getattr(data, "template", None))

    def setup(self, stage: str) -> None:
        """Measure each data set of a mixture by itself, too, and compare with each of several teachers."""
        sources = getattr(getattr(self.trainer.datamodule, "task", None), "sources", ())  # type: ignore[attr-defined]
        add_sources(self.validation_metrics, sources)
        models: Models | None = self.models
        known = [name for name in self.compared_apart if models is None or name in models.comparable]
        add_teachers(self.validation_metrics, teacher_folders(known, sources))

    def on_fit_end(self) -> None:
        """Say where the weights are after a fit in processes that end with it, as in a notebook on several devices."""
        # Private: no public name tells a launcher that forks or spawns processes from the others.
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            rank_zero_info(
                "The fit ran in processes of its own, so the module of this one has no trained weights. They are in "
                "the checkpoints (the callback `Checkpoints` keeps `last.ckpt`): name one as `ckpt_path` of "
                "`validate`, `test` or `predict`, or to `veto-pl export`."
            )
