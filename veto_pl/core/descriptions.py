"""Parts as plain values, for checkpoints and loggers, which hold no objects; and parts made of them again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from veto_pl.exceptions import ConfigurationError

OWN_CHOICE = ("trust_remote_code", "cache")
"""Settings that a description cannot make: whoever reads it does."""
PLACES = ("path", "start")
"""Settings that may name a file or folder, which is told by its whole path."""
DEEPEST = 10
"""Values inside of each other, at most."""
PLAIN = (type(None), bool, int, float, str)

Name = Callable[[type], str | None]
Find = Callable[[str], Callable[..., Any] | None]


class NotPlainError(Exception):
    """A value that cannot be told in plain values; the argument is that value."""


def described(value: Any, name: Name) -> Any:
    """Return a value in plain values: a part as its class and settings, a tuple as a list.

    Args:
        value: a part, or what a part may be given.
        name: gives the name of a class; None for one that is not described.

    Raises:
        NotPlainError: there is something else in it.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, list | tuple):
        return [described(entry, name) for entry in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value) and "class" not in value:
        return {key: described(entry, name) for key, entry in value.items()}
    if (named := name(type(value))) is None:
        raise NotPlainError(value)
    settings: dict[str, Any] = {}
    for setting in settings_of(type(value)):
        if not hasattr(value, setting):
            raise NotPlainError(value)
        if setting not in OWN_CHOICE:
            settings[setting] = _absolute(setting, described(getattr(value, setting), name))
    return {"class": named, "settings": settings}


def rebuilt(description: Any, find: Find, *, trust_remote_code: bool, depth: int = 0) -> Any:
    """Return the value that `described` has described. Nothing runs but the constructors of classes that are found.

    Args:
        description: from a checkpoint, which may be anybody's.
        find: gives the class of a name; None for one that is not known.
        trust_remote_code: whether code that belongs to a model may run.
        depth: how many values this one is inside of.

    Raises:
        ConfigurationError: it describes nothing that can be made.
    """
    inner: dict[str, Any] = {"find": find, "trust_remote_code": trust_remote_code, "depth": depth + 1}
    if isinstance(description, list | tuple):
        return [rebuilt(entry, **inner) for entry in description]
    if not isinstance(description, Mapping):
        return description
    if depth > DEEPEST:
        raise ConfigurationError("It describes parts inside of too many others.")
    if "class" not in description:
        return {str(key): rebuilt(value, **inner) for key, value in description.items()}
    cls, given = find(str(description["class"])), description.get("settings")
    if cls is None or not isinstance(given, Mapping):
        raise ConfigurationError(f"It names `{description['class']!s:.100}`, which is no part that is known here.")
    known = settings_of(cls)
    told = [key for key in known if key in given and key not in OWN_CHOICE]
    settings = {key: _frozen(rebuilt(given[key], **inner)) for key in told}
    if "trust_remote_code" in known:
        settings["trust_remote_code"] = trust_remote_code
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"It describes a `{cls.__name__}` that cannot be made: {error!s:.300}") from error


def settings_of(cls: Callable[..., Any]) -> list[str]:
    """Return the names of the settings of a class, in the order in which it takes them."""
    if is_dataclass(cls):
        return [field.name for field in fields(cls) if field.init]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, parameter in inspect.signature(cls).parameters.items() if parameter.kind not in kinds]


def _frozen(value: Any) -> Any:
    """Return lists as tuples, as parts take them."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _absolute(setting: str, value: Any) -> Any:
    local = setting in PLACES and isinstance(value, str) and Path(value).exists()
    return str(Path(value).absolute()) if local else value
