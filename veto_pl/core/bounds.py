"""Bounds of numbers, declared where the number is: `fraction: UnitInterval | Schedule = 0.5`.

A part with such fields derives from `Bounded`, as the seams do. Its fields are then checked when it is made, and the
bounds stand in its docstring, which is its `--help`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from annotated_types import Interval

from veto_pl.exceptions import ConfigurationError

T = TypeVar("T")
UnitInterval = Annotated[float, Interval(ge=0, le=1)]
OpenUnitInterval = Annotated[float, Interval(gt=0, lt=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
Positive = Annotated[float, Interval(gt=0, lt=math.inf)]
NonNegative = Annotated[float, Interval(ge=0, lt=math.inf)]
Finite = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
AboveZero = Annotated[float, Interval(gt=0)]
"""Infinity means that a limit is off."""
FromZero = Annotated[float, Interval(ge=0)]
Count = Annotated[int, Interval(ge=1)]
CountFromZero = Annotated[int, Interval(ge=0)]


def declares_bounds(cls: type[T]) -> type[T]:
    """Note the bounds of a class's fields, beside those of its parents, and add them to its docstring.

    Bounds of a parent's field are added where the docstring of this class describes that field again.
    """
    names = vars(sys.modules[cls.__module__])
    fields = vars(cls).get("__annotations__", {})
    own = {name: bound for name, hint in fields.items() if (bound := _bound(hint, names)) is not None}
    # A field that is declared again keeps its bound, or gets a new one. No annotation says what this is: jsonargparse
    # would look for its names in the files of other classes.
    cls._bounds = {**getattr(cls, "_bounds", {}), **own}  # type: ignore[attr-defined]
    cls.__doc__ = _documented(cls.__doc__, cls._bounds)  # type: ignore[attr-defined]
    return cls


def check_bounds(part: object) -> None:
    """Check every number against the bounds of its field.

    A field that may also hold something else, such as a schedule or None, is checked where it holds a number.

    Raises:
        ConfigurationError: a number lies outside, or is NaN.
    """
    bounds: Mapping[str, Interval] = getattr(part, "_bounds", {})
    for name, bound in bounds.items():
        value = getattr(part, name)
        if isinstance(value, int | float) and not inside(value, bound):
            words = in_words(bound)
            verb = "lie" if words.startswith("in ") else "be"
            raise ConfigurationError(f"`{type(part).__name__}.{name}` must {verb} {words}, got {value!r}.")


class Bounded:
    """What has bounds on its fields: they are checked when it is made, and added to its docstring."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declares_bounds(cls)

    def __post_init__(self) -> None:
        """Check the bounds. A class that overrides this one calls it first."""
        self.check_bounds()

    def check_bounds(self) -> None:
        """Check every number against the bounds of its field; raise `ConfigurationError` where one lies outside."""
        check_bounds(self)


def inside(value: float, bound: Interval) -> bool:
    """Return whether a number lies inside a bound; NaN never does."""
    low, high = _ends(bound)
    least = low is None or (value >= low if bound.gt is None else value > low)
    most = high is None or (value <= high if bound.lt is None else value < high)
    return bool(least and most and not math.isnan(value))


def in_words(bound: Interval) -> str:
    """Say what lies inside a bound.

    Examples:
        >>> in_words(Interval(ge=0, le=1))
        'in [0, 1]'
        >>> in_words(Interval(gt=0, lt=math.inf))
        'above 0 and finite'
        >>> in_words(Interval(ge=1))
        'at least 1'
    """
    low, high = _ends(bound)
    if low is not None and high is not None and high != math.inf:
        return f"in {'[' if bound.gt is None else '('}{low:g}, {high:g}{']' if bound.lt is None else ')'}"
    words = [] if low in (None, -math.inf) else [f"{'at least' if bound.gt is None else 'above'} {low:g}"]
    if high is not None:
        words.append("finite" if high == math.inf else f"{'at most' if bound.lt is None else 'below'} {high:g}")
    return " and ".join(words)


def _ends(bound: Interval) -> tuple[Any, Any]:
    return bound.ge if bound.gt is None else bound.gt, bound.le if bound.lt is None else bound.lt


def _bound(hint: Any, names: Mapping[str, Any]) -> Interval | None:
    """Find the bound in an annotation, or in the annotations that one written as text names."""
    if isinstance(hint, str) and "Annotated" in hint:
        hint = eval(hint, dict(names))
    parts = [names.get(word) for word in re.findall(r"\w+", hint)] if isinstance(hint, str) else [hint, *get_args(hint)]
    marks = (mark for part in parts for mark in getattr(part, "__metadata__", ()))
    return next((mark for mark in marks if isinstance(mark, Interval)), None)


def _documented(docstring: str | None, bounds: Mapping[str, Interval]) -> str | None:
    """Write bounds behind the descriptions of their fields, in parentheses, unless the description has them."""
    if docstring is None:
        return None
    for name, bound in bounds.items():
        entry = rf"(?s)\n(?P<indent> +){name}: .*?(?=\.?\n(?P=indent)\w+: |\.?\n\s*\n|\.?\s*\Z)"
        described = re.search(entry, docstring)
        if described and in_words(bound) not in " ".join(described[0].split()):
            end = described.end()
            docstring = f"{docstring[:end]} ({in_words(bound)}){docstring[end:]}"
    return docstring
