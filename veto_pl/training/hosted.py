"""What a distillation module has from the trainer that runs it: the template of the data, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Models, ModelSource, Objective, Rollouts, Step
from veto_pl.seams.rollouts import TEACHER, listed, setting_of
from veto_pl.training.measured import add_sources
from veto_pl.training.template_probe import warn_of_templates


def check_models(objective: Objective, teachers: Mapping[str, ModelSource], reference: ModelSource | None) -> None:
    """Raise `ConfigurationError` where an objective needs a model that is not given.

    Args:
        objective: says what it needs.
        teachers: all of them, by name.
        reference: the further frozen model, or None.
    """
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


def _missing(objective: str, teacher: str, part: object, teachers: Mapping[str, ModelSource]) -> str:
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
    teacher_sources: Mapping[str, ModelSource]
    _templates_are_known = False

    @property
    def further_teachers(self) -> dict[str, ModelSource]:
        """Return the sources of `model.teachers`, by name."""
        return {name: source for name, source in self.teacher_sources.items() if name != TEACHER}

    def keep_teachers_that_move(self, models: Models) -> None:
        """Make submodules of the teachers that change, so that checkpoints hold them."""
        for name, model in models.named_teachers.items():
            if self.teacher_sources[name].moves:
                self.add_module(name if name == TEACHER else f"{TEACHER}-{name}", model)

    def move_teachers(self, models: Models, step: Step) -> None:
        """Let every teacher follow the student after an optimizer step."""
        for name, model in models.named_teachers.items():
            self.teacher_sources[name].follow(model, models.student, step)

    def look_at_templates(self, objective: Objective, rollouts: Rollouts, models: Models, step: Step) -> None:
        """Warn once of teachers with a chat template of their own. Collective: call it on every rank."""
        if not self._templates_are_known:
            self._templates_are_known = True
            warn_of_templates(objective, rollouts, models, step)

    def leave_out_comparisons(self, models: Models) -> None:
        """Take away the metrics that compare ids with a teacher's, where it has others; warn once, and name them.

        Raises:
            ConfigurationError: a callback follows one of them.
        """
        metrics = self.validation_metrics.items() if models.tokenizers else ()
        compared = [name for name, metric in metrics if getattr(metric, "needs_teacher", False)]
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
        """Measure each data set of a mixture by itself, too."""
        task = getattr(self.trainer.datamodule, "task", None)  # type: ignore[attr-defined]
        add_sources(self.validation_metrics, getattr(task, "sources", ()))

    def on_fit_end(self) -> None:
        """Say where the weights are after a fit in processes that end with it, as in a notebook on several devices."""
        # Private: no public name tells a launcher that forks or spawns processes from the others.
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            rank_zero_info(
                "The fit ran in processes of its own, so the module of this one has no trained weights. They are in "
                "the checkpoints (the callback `Checkpoints` keeps `last.ckpt`): name one as `ckpt_path` of "
                "`validate`, `test` or `predict`, or to `veto-pl export`."
            )
