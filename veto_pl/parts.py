"""Objectives inside of objectives, such as the terms of a sum."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from veto_pl.seams import Objective


def objectives_in(objective: Objective) -> Iterator[Objective]:
    """The objective itself, and all that it was given, at any depth."""
    yield objective
    for value in _given(objective).values():
        for part in value.values() if isinstance(value, dict) else (value,):
            if isinstance(part, Objective):
                yield from objectives_in(part)


def changed(objective: Objective, change: Callable[[Objective], Objective]) -> Objective:
    """The same objective with every one inside of it, and at last itself, put through `change`."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: of(part) for name, part in value.items()}
        return changed(value, change) if isinstance(value, Objective) else value

    given = _given(objective)
    altered = {name: new for name, value in given.items() if (new := of(value)) != value}
    return change(replace(objective, **altered) if altered else objective)  # type: ignore[type-var]


def _given(objective: Objective) -> dict[str, Any]:
    return {part.name: getattr(objective, part.name) for part in fields(objective) if part.init}  # type: ignore[arg-type]
