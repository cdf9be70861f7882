"""The names of the teachers of a run, in settings and in messages."""

from __future__ import annotations

from collections.abc import Iterable

from veto_pl.exceptions import ConfigurationError
from veto_pl.seams.models import LanguageModel

TEACHER = "teacher"
"""The name of `model.teacher` among the teachers."""


def setting_of(teacher: str) -> str:
    """Return where a configuration says where a teacher comes from, by its name.

    Example:
        >>> setting_of("teacher"), setting_of("maths")
        ('model.teacher', 'model.teachers.maths')
    """
    return f"model.{TEACHER}" if teacher == TEACHER else f"model.teachers.{teacher}"


def listed(names: Iterable[str]) -> str:
    """Return names as a message shows them.

    Example:
        >>> listed(["teacher", "maths"]), listed([])
        ('`teacher`, `maths`', 'none')
    """
    return ", ".join(f"`{name}`" for name in names) or "none"


def required(role: str, model: LanguageModel | None, others: Iterable[str] = ()) -> LanguageModel:
    """Return a model; raise `ConfigurationError` where the run has none in this role."""
    if model is None:
        beside = f"; the teachers {listed(others)} of `model.teachers` cannot take its place" if others else ""
        raise ConfigurationError(f"A {role} is needed, but `model.{role}` is not set{beside}. Name one there.")
    return model
