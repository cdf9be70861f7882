"""Sources of models as plain values, for checkpoints: only this package's own are made again, and none runs code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.initialisation import Pruned, RandomWeights
from veto_pl.models.loading import Gguf, Pretrained
from veto_pl.models.lora import Lora
from veto_pl.seams import ModelSource

KNOWN: dict[str, type[Any]] = {cls.__name__: cls for cls in (Gguf, Lora, Pretrained, Pruned, RandomWeights)}
"""The sources that a checkpoint may name. They read files and hubs, and write nothing but their cache."""
OWN_CHOICE = ("trust_remote_code", "cache")
"""Settings that a checkpoint cannot make: whoever reads it does."""
DEEPEST = 8


def described(source: ModelSource) -> dict[str, Any] | None:
    """Return the class and settings of a source as plain values; None where something else belongs to it."""
    if type(source) is not KNOWN.get(type(source).__name__):
        return None
    settings: dict[str, Any] = {}
    for field in fields(KNOWN[type(source).__name__]):
        value = getattr(source, field.name)
        if isinstance(value, ModelSource):
            value = described(value)
            if value is None:
                return None
        elif field.name in ("path", "start") and value is not None and Path(value).exists():
            value = str(Path(value).absolute())
        if field.name not in OWN_CHOICE:
            settings[field.name] = list(value) if isinstance(value, tuple) else value
    return {"class": type(source).__name__, "settings": settings}


def rebuilt(description: Any, *, trust_remote_code: bool, depth: int = 0) -> ModelSource:
    """Make the source again that `described` has described.

    Args:
        description: from a checkpoint, which may be anybody's.
        trust_remote_code: whether code that belongs to a model may run.
        depth: how many sources this one is inside of.

    Raises:
        ConfigurationError: it describes no source of this package.
    """
    cls = KNOWN.get(str(description.get("class"))) if isinstance(description, Mapping) else None
    given = description.get("settings") if isinstance(description, Mapping) else None
    if cls is None or not isinstance(given, Mapping) or depth > DEEPEST:
        raise ConfigurationError("The checkpoint describes no source of models that this version has.")
    names = {field.name for field in fields(cls)} - set(OWN_CHOICE)
    settings: dict[str, Any] = {name: value for name, value in given.items() if name in names}
    if isinstance(inner := settings.get("source"), Mapping):
        settings["source"] = rebuilt(inner, trust_remote_code=trust_remote_code, depth=depth + 1)
    for name, value in settings.items():
        settings[name] = tuple(value) if isinstance(value, list) else value
    if "trust_remote_code" in {field.name for field in fields(cls)}:
        settings["trust_remote_code"] = trust_remote_code
    try:
        source: ModelSource = cls(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The checkpoint describes a `{cls.__name__}` that cannot be made: {error}") from error
    return source
