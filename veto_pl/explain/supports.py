"""Objectives that keep more ids than a scene has."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import fields, replace
from typing import TypeVar

from veto_pl.parts.supports import TopK
from veto_pl.seams import Objective

Part = TypeVar("Part")


def kept_ids(part: object) -> int:
    """The most ids that a `TopK` keeps, in an objective and all that it is made of; 0 where there is none."""
    return part.k if isinstance(part, TopK) else max((kept_ids(inner) for _, inner in _inside(part)), default=0)


def narrowed(part: Part, most: int) -> Part:
    """The same objective with no more than `most` ids kept, which must leave one id of the vocabulary.

    That one is all others together, so the outcomes are those of the whole vocabulary.
    """
    if isinstance(part, TopK):
        return replace(part, k=min(part.k, most))
    if isinstance(part, dict):
        return type(part)((name, narrowed(inner, most)) for name, inner in part.items())
    if not isinstance(part, Objective):
        return part
    # Not `replace`: it would make a composition anew, of the settings as they are.
    changed = copy(part)
    for name, inner in _inside(part):
        object.__setattr__(changed, name, narrowed(inner, most))
    return changed


def _inside(part: object) -> Iterator[tuple[str, object]]:
    if isinstance(part, dict):
        yield from part.items()
    elif isinstance(part, Objective):
        yield from ((field.name, getattr(part, field.name)) for field in fields(part))  # type: ignore[arg-type]
