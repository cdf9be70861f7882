"""What a teacher without a model cannot do in a run, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from veto_pl.core.nested import given, walk
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Objective, Panel, ScoreSource, TeacherSource
from veto_pl.seams.teacher_names import TEACHER, setting_of


def check_tellers(objective: Objective, teachers: Mapping[str, TeacherSource]) -> None:
    """Raise `ConfigurationError` where a stored or served teacher is to do more than to tell what it knows.

    Args:
        objective: of the run.
        teachers: where they come from, by name.
    """
    names = tuple(teachers)
    tellers = {name: source for name, source in teachers.items() if isinstance(source, ScoreSource)}
    for name, source in tellers.items():
        what = f"`{setting_of(name)}` (`{type(source).__name__}`)"
        if any(name in one.writers for one in objective.writings(names)):
            raise ConfigurationError(f"{what} tells scores and cannot write. Let a teacher with a model write.")
        for part, panel in _asking(objective, name, names):
            part.check_told(source.of_nothing(), what)
            _check_panel(panel, part, what)
            _check_rollouts(part, source, what)


def _asking(objective: Objective, name: str, names: tuple[str, ...]) -> Iterator[tuple[Objective, Panel | None]]:
    """Yield the objectives that ask a teacher, each with its panel; None where it asks `model.teacher` without one."""
    readers = [one for _, one in walk(objective, derived=True) if isinstance(one, Objective) and one.needs_teacher]
    for part in readers:
        panels = list(given(part, Panel))  # type: ignore[type-abstract]
        yield from ((part, panel) for panel in panels if name in panel.asks(names))
    if name == TEACHER and not objective.panels and readers:
        yield readers[-1], None


def _check_panel(panel: Panel | None, part: Objective, what: str) -> None:
    if panel is not None and panel.pool is not None:
        raise ConfigurationError(
            f"`{type(panel).__name__}` of `{type(part).__name__}` makes one teacher of several, for which it needs the "
            f"logits of each, but {what} tells its likeliest ids alone. Average their losses, or use live teachers."
        )


def _check_rollouts(part: Objective, source: ScoreSource, what: str) -> None:
    for rollout in part.sources:
        if not source.knows_new_texts and any(writing.writers for writing in rollout.writings()):
            raise ConfigurationError(
                f"{what} knows what it was asked once, and not what `{type(rollout).__name__}` of "
                f"`{type(part).__name__}` writes. Train on references (`FromDataset`), or use a served or live teacher."
            )
