"""Sources of models as plain values, for checkpoints: only this package's own are made again, and none runs code."""

from __future__ import annotations

from typing import Any

from veto_pl.core import descriptions
from veto_pl.core.descriptions import NotPlainError
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.initialisation import Pruned, RandomWeights
from veto_pl.models.loading import Gguf, Pretrained
from veto_pl.models.lora import Lora
from veto_pl.seams import ModelSource

KNOWN: dict[str, type[Any]] = {cls.__name__: cls for cls in (Gguf, Lora, Pretrained, Pruned, RandomWeights)}
"""The sources that a checkpoint may name. They read files and hubs, and write nothing but their cache."""
_NONE = "The checkpoint describes no source of models that this version has."


def described(source: ModelSource) -> dict[str, Any] | None:
    """Return the class and settings of a source as plain values; None where something else belongs to it."""
    try:
        told: dict[str, Any] = descriptions.described(
            source, lambda cls: cls.__name__ if KNOWN.get(cls.__name__) is cls else None
        )
    except NotPlainError:
        return None
    return told


def rebuilt(description: Any, *, trust_remote_code: bool) -> ModelSource:
    """Make the source again that `described` has described.

    Args:
        description: from a checkpoint, which may be anybody's.
        trust_remote_code: whether code that belongs to a model may run.

    Raises:
        ConfigurationError: it describes no source of this package.
    """
    try:
        source = descriptions.rebuilt(description, KNOWN.get, trust_remote_code=trust_remote_code)
    except ConfigurationError as error:
        raise ConfigurationError(f"{_NONE} {error}") from error
    if not isinstance(source, ModelSource):
        raise ConfigurationError(_NONE)
    return source
