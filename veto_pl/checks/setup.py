"""What is about to run, as the checks read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

from lightning.pytorch import Callback

from veto_pl.data import PromptDataModule
from veto_pl.exceptions import VetoError
from veto_pl.module import DistillationModule
from veto_pl.rollouts import AdaptiveReplay, Mixture, Replay, Sampling
from veto_pl.seams import ModelSource


@dataclass(frozen=True)
class Setup:
    """What is about to run; nothing of it has been loaded.

    Args:
        module: with the sources of the models.
        data: with the task.
        trainer: the trainer's settings by name; what is not known is left out, and not checked.
        stage: fit, validate, test or predict.
        callbacks: by the path of their settings.
    """

    module: DistillationModule
    data: PromptDataModule
    trainer: Mapping[str, Any]
    stage: str = "fit"
    callbacks: Mapping[str, Callback] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Everything that the objective is composed of, with its path in the YAML."""
        return _parts(self.module.objective, "model.objective")

    def sources(self) -> Iterator[Any]:
        """Every rollout that may be used, also inside mixtures."""
        for source in self.module.objective.sources:
            yield from _used(source)

    @cached_property
    def models(self) -> dict[str, Any]:
        """The architecture of each model by its path, or the error that reading it gave. No weights are read."""
        roles = ("student", "teacher", "reference")
        sources = {f"model.{role}": getattr(self.module, f"{role}_source") for role in roles}
        return {path: _architecture(source) for path, source in sources.items() if source is not None}


def _architecture(source: ModelSource) -> Any:
    try:
        return source.config()
    except VetoError as error:
        return error


def _parts(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, part
    for name, value in settings(part, path):
        if is_dataclass(value):
            yield from _parts(value, name)


def settings(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What a part was given, each with its path; the entries of mappings one by one."""
    inside = path if isinstance(part, Sampling) else f"{path}.init_args"
    for name, value in [(f.name, getattr(part, f.name)) for f in fields(part) if f.init] if is_dataclass(part) else ():
        if isinstance(value, Mapping):
            yield from ((f"{inside}.{name}.{key}", item) for key, item in value.items())
        else:
            yield f"{inside}.{name}", value


def _used(source: Any) -> Iterator[Any]:
    if isinstance(source, AdaptiveReplay):
        yield from (*_used(source.student), *_used(source.dataset))
        return
    if isinstance(source, Replay):
        yield from _used(source.source)
        return
    if not isinstance(source, Mixture):
        yield source
        return
    if source.fraction != 0:
        yield from _used(source.first)
    if source.fraction != 1:
        yield from _used(source.second)
