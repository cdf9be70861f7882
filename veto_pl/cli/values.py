"""Values that the parser lets pass and that no class expects, found before any class is made."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any

from veto_pl.core.mistakes import Mistake, report, shorten

SEEDS = 2**32
"""As many seeds NumPy knows."""
NEEDED = ("run_dir", "validate_first", "threads")
"""Settings at the top that have a value in every run."""


def check_values(config: Mapping[str, Any], roots: Mapping[str, Callable[..., Any] | None]) -> None:
    """Check a parsed configuration before any of its classes is built.

    Args:
        config: as nested mappings.
        roots: the class or function behind each first key.

    Raises:
        ConfigurationError: a seed that is none, or nothing where a value is expected.
    """
    report([*_seed(config.get("seed_everything")), *_plain_roots(config), *_mistakes_in_roots(config, roots)])


def _seed(value: Any) -> Iterator[Mistake]:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SEEDS:
        given = "nothing" if value is None else f"`{str(value).lower()}`"
        yield Mistake("seed_everything", given, f"a whole number from 0 to {SEEDS - 1}",
                      "With a number `config.yaml` describes the run; choose one.")  # fmt: skip


def _plain_roots(config: Mapping[str, Any]) -> Iterator[Mistake]:
    for name in NEEDED:
        if name in config and config[name] is None:
            yield Mistake(name, "nothing (`null`)", "a value", "Set it, or leave it out for its default.")


def _mistakes_in_roots(config: Mapping[str, Any], roots: Mapping[str, Callable[..., Any] | None]) -> Iterator[Mistake]:
    for name, owner in roots.items():
        if owner is not None and isinstance(given := config.get(name), Mapping):
            yield from _mistakes_in(given, owner, name)


def _mistakes_in(given: Mapping[str, Any], owner: Callable[..., Any], path: str) -> Iterator[Mistake]:
    """Yield the arguments that are `null`, or no mapping of settings, where their annotation does not allow it."""
    hints = _hints_of(owner)
    for name, parameter in inspect.signature(owner).parameters.items():
        if name not in given or name not in hints or parameter.default is None:
            continue
        where, value, hint = f"{path}.{name}", given[name], hints[name]
        settings = next((cls for cls in _classes_in(hint) if is_dataclass(cls) and not inspect.isabstract(cls)), None)
        if value is None and not _admits_none(hint):
            yield Mistake(where, "nothing (`null`)", "a value", f"Set it{_default(parameter)}.")
        elif settings is not None and not isinstance(value, Mapping | list | str | settings):
            yield Mistake(where, f"`{shorten(value)}`", "a mapping of settings", "Write them below it.")
        elif settings is not None and isinstance(value, Mapping) and "class_path" not in value:
            yield from _mistakes_in(value, settings, where)
        yield from _mistakes_in_classes(value, where)


def _mistakes_in_classes(value: Any, path: str) -> Iterator[Mistake]:
    """Yield the mistakes in the arguments of each class that a value names, also inside lists and mappings."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _mistakes_in_classes(item, f"{path}.{i}")
    elif isinstance(value, Mapping) and "class_path" in value:
        module, _, name = str(value["class_path"]).rpartition(".")
        try:
            owner = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            return  # which the parser has accepted nevertheless
        yield from _mistakes_in(value.get("init_args") or {}, owner, f"{path}.init_args")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _mistakes_in_classes(item, f"{path}.{key}")


def _admits_none(hint: Any) -> bool:
    return hint in (Any, None, type(None)) or any(_admits_none(part) for part in _alternatives(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, typing.get_origin(int | None))
    return typing.get_args(hint) if is_union else ()


def _default(parameter: inspect.Parameter) -> str:
    default = parameter.default
    plain = isinstance(default, bool | int | float | str)
    return f", or leave it out for `{str(default).lower() if isinstance(default, bool) else default}`" if plain else ""


def _hints_of(owner: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a class's arguments; none where they cannot be read."""
    try:
        return typing.get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
    except (NameError, TypeError, AttributeError):
        return {}


def _classes_in(annotation: Any) -> Iterator[type]:
    """Yield the classes in an annotation, also inside unions and collections, and as return types of functions."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Callable:
        yield from _classes_in(arguments[-1])
    elif typing.get_origin(annotation) in (typing.Union, UnionType, list, tuple, dict):
        for argument in arguments:
            yield from _classes_in(argument)
    elif inspect.isclass(annotation) and annotation.__module__ != "builtins":
        yield annotation
