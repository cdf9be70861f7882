"""Walks over strategies inside of strategies, such as the terms of a sum or the sources of a mixture."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

P = TypeVar("P")


def inside(whole: object, kind: type[P]) -> Iterator[P]:
    """Yield every instance of `kind` among a strategy and the strategies in its fields, at any depth."""
    if isinstance(whole, kind):
        yield whole
    for value in _given(whole).values():
        for part in value.values() if isinstance(value, dict) else (value,):
            yield from inside(part, kind)


def changed(whole: P, kind: type[P], change: Callable[[P], P]) -> P:
    """Return a copy in which every instance of `kind` was put through `change`, inner ones first, the whole last."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: of(part) for name, part in value.items()}
        return changed(value, kind, change) if isinstance(value, kind) else value

    altered = {name: new for name, value in _given(whole).items() if (new := of(value)) != value}
    return change(replace(whole, **altered) if altered else whole)  # type: ignore[type-var]


def _given(whole: object) -> dict[str, Any]:
    if not is_dataclass(whole):
        return {}
    return {part.name: getattr(whole, part.name) for part in fields(whole) if part.init}
