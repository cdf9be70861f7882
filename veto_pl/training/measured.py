"""What a validation measures, and by whom."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from veto_pl.core.mistakes import check_kind
from veto_pl.core.nested import inside, walk
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import CompletionMetric, MetricFamily, TokenMetric, default_metrics
from veto_pl.parts.contexts import SameText
from veto_pl.parts.panels import OneTeacher
from veto_pl.rollouts import Sampling
from veto_pl.seams import Objective, Panel, PlayingSource, TeacherContext
from veto_pl.seams.teacher_names import TEACHER

KINDS = (CompletionMetric, TokenMetric, MetricFamily)
"""What a validation can measure with."""


def validation_metrics(
    metrics: Sequence[CompletionMetric | TokenMetric | MetricFamily] | None,
    sampling: Sampling,
    *,
    with_teacher: bool,
    turns: int = 0,
) -> nn.ModuleDict:
    """Return the metrics by name, families as their members, without those that need a teacher where there is none.

    Args:
        metrics: of the run; None for the default set.
        sampling: how the student answers.
        with_teacher: whether there is one.
        turns: of the episodes that are measured one by one; 0 for single answers.
    """
    check_kind(sampling, Sampling, "model.evaluation", "a `Sampling`")
    if metrics is not None:
        check_kind(metrics, (list, tuple), "model.metrics", "a list of metrics")
    for metric in metrics or ():
        check_kind(metric, KINDS, "model.metrics", "a `CompletionMetric`, `TokenMetric` or `MetricFamily`")
    count = sampling.num_completions
    chosen: list[CompletionMetric | TokenMetric] = []
    for metric in default_metrics(count, turns) if metrics is None else metrics:
        chosen += metric.members(count) if isinstance(metric, MetricFamily) else [metric]
    if nameless := [type(metric).__name__ for metric in chosen if not getattr(metric, "name", "")]:
        raise ConfigurationError(f"`{nameless[0]}` has no name to be logged under. Give the class a `name`.")
    if dotted := sorted(metric.name for metric in chosen if "." in metric.name):
        raise ConfigurationError(f"The name of a metric cannot hold a dot, got `{dotted[0]}`. Use another character.")
    usable = [m for m in chosen if with_teacher or not getattr(m, "needs_teacher", False)]
    return nn.ModuleDict({metric.name: metric for metric in usable})


def compared_by(objective: Objective, teachers: Collection[str]) -> Panel | None:
    """Return the panel of teachers that a validation compares with: the objective's first, else `model.teacher` alone.

    Args:
        objective: of the run.
        teachers: the names of all teachers.

    Returns:
        None where there is no teacher to compare with.
    """
    alone = [OneTeacher()] if TEACHER in teachers else []
    return next(iter((*objective.panels, *alone)), None) if teachers else None


def read_in_validation(objective: Objective) -> TeacherContext:
    """Return what teachers read in a validation: the first context of the objective that tells them nothing more."""
    contexts = inside(objective, TeacherContext)  # type: ignore[type-abstract]
    return next((one for one in contexts if one.tells_nothing), SameText())


def played_by(part: object) -> PlayingSource | None:
    """Return the first source of episodes in a part, such as an objective or a source; None where nothing plays any."""
    return next((one for _, one in walk(part, derived=True) if isinstance(one, PlayingSource)), None)


def add_sources(metrics: nn.ModuleDict, sources: Sequence[str]) -> None:
    """Add a copy of each metric for each data set of a mixture, as `maths/accuracy`, where there is none yet."""
    for name, metric in [*metrics.items()]:
        for source in sources:
            if not getattr(metric, "source", "") and f"{source}/{name}" not in metrics:
                own: Any = copy.deepcopy(metric)
                own.source, own.name = source, f"{source}/{name}"
                metrics[own.name] = own


def compute_all(metrics: nn.ModuleDict, prefix: str) -> dict[str, float]:
    """Compute each metric over all ranks, by its logged name. Collective: call it on every rank."""
    return {f"{prefix}/{name}": float(cast(Metric, metric).compute()) for name, metric in metrics.items()}


def warn_of_unread(metrics: nn.ModuleDict, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Warn where nothing was compared with a teacher: the mean of nothing is 0, as if the student were the teacher.

    Args:
        metrics: of a validation that is over.
        total: adds up a tensor over all ranks. Collective: call this on every rank.
    """
    compared = {
        name: cast(torch.Tensor, metric.weight)
        for name, metric in metrics.items()
        if getattr(metric, "needs_teacher", False) and not metric.source
    }
    if compared and not total(torch.stack(list(compared.values()))).any():
        names = ", ".join(f"`{name}`" for name in compared)
        rank_zero_warn(
            f"No teacher has read a token of this validation, so that {names} are 0 of nothing. See which rows the "
            "panel of the objective leaves out; `train/unread` counts such tokens in training."
        )
