"""Parts inside of parts, such as the terms of a sum, or the sources of a mixture: the one way to walk through them."""

from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

P = TypeVar("P")
Whole = TypeVar("Whole")


class Place(NamedTuple):
    """A step on the way to a part: the part around it, the field, and the key where the field holds several."""

    around: object
    field: str
    key: str = ""


Path = tuple[Place, ...]
"""The way to a part, from the outside in; empty for the whole."""


def walk(
    whole: object, *, derived: bool = False, closed: type | None = None, path: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """Yield a part and everything that it was given, at any depth, each with its path; what is outside comes first.

    Args:
        whole: the part, a dataclass. The entries of its mappings, lists and tuples are walked one by one.
        derived: visit what a part has made of its settings as well, in fields that are not given (`init=False`).
        closed: parts of this kind inside of `whole` are not walked into.
        path: the way to `whole`.
    """
    yield path, whole
    if path and closed is not None and isinstance(whole, closed):
        return
    for field in _fields(whole, derived):
        for key, value in _entries(getattr(whole, field)):
            yield from walk(value, derived=derived, closed=closed, path=(*path, Place(whole, field, key)))


def inside(whole: object, kind: type[P]) -> Iterator[P]:
    """Yield everything of a kind among a part and what it was given, at any depth."""
    return (part for _, part in walk(whole) if isinstance(part, kind))


def given(whole: object, kind: type[P]) -> Iterator[P]:
    """Yield everything of a kind that a part was given itself, and nothing that is farther inside."""
    return (part for path, part in walk(whole, closed=kind) if len(path) == 1 and isinstance(part, kind))


def setting(path: Path, root: str) -> str:
    """Return the path of a part as a configuration writes it, below `root`.

    Example:
        >>> from veto_pl.objectives import SFT, Sum
        >>> [setting(path, "model.objective") for path, part in walk(Sum(terms={"gold": SFT()})) if part == 1.0]
        ['model.objective.init_args.terms.gold.init_args.temperature']
    """
    for place in path:
        # What stands behind an abstract class is named by its class there, and its settings stand below `init_args`.
        named = ".init_args" if isinstance(type(place.around), ABCMeta) else ""
        root += f"{named}.{place.field}" + (f".{place.key}" if place.key else "")
    return root


def changed(whole: Whole, kind: type[P], change: Callable[[P], P]) -> Whole:
    """Return the same part with every one of a kind inside of it, and at last itself, put through `change`.

    A part whose settings have changed is made anew. What parts have made of their settings is changed as well.
    """

    def of(value: Any) -> Any:
        return _with_entries(value, [changed(entry, kind, change) for _, entry in _entries(value)])

    given = {name: of(getattr(whole, name)) for name in _fields(whole, derived=False)}
    altered = {name: new for name, new in given.items() if new is not getattr(whole, name)}
    made: Any = replace(whole, **altered) if altered else whole  # type: ignore[type-var]
    derived = {name: of(getattr(made, name)) for name in _fields(made, derived=True) if name not in given}
    if any(new is not getattr(made, name) for name, new in derived.items()):
        made = copy(made)
        for name, new in derived.items():
            object.__setattr__(made, name, new)
    return cast(Whole, change(made) if isinstance(made, kind) else made)


def exchanged(whole: Whole, change: Callable[[Any], Any]) -> Whole:
    """Return a part whose own parts, derived ones too, have been put through `change`; itself where none has changed.

    Unlike `changed`, which makes parts anew, it copies them: nothing is checked or derived again.
    """
    made = whole
    for name in _fields(whole, derived=True):
        value = getattr(whole, name)
        new = _with_entries(value, [change(entry) for _, entry in _entries(value)])
        if new is not value:
            made = copy(whole) if made is whole else made
            object.__setattr__(made, name, new)
    return made


def _with_entries(value: Any, new: list[Any]) -> Any:
    """Return the same kind of value with other entries, or itself where they are the same."""
    if all(one is old for one, (_, old) in zip(new, _entries(value), strict=True)):
        return value
    if isinstance(value, Mapping):
        return dict(zip(value, new, strict=True))
    return type(value)(new) if isinstance(value, list | tuple) else new[0]


def _fields(whole: object, derived: bool) -> list[str]:
    if not is_dataclass(whole) or isinstance(whole, type):
        return []
    return [field.name for field in fields(whole) if field.init or derived]


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), entry) for key, entry in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(index), entry) for index, entry in enumerate(value))
    else:
        yield "", value
