"""What a class of the configuration says when it refuses its settings, with the path of the setting."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError

REFUSALS = (ConfigurationError, MisconfigurationException, ValueError, TypeError)
"""What a class raises that does not take its settings."""

_WITHOUT_CLASS_PATH = {"Sampling": ("sampling", "evaluation")}
"""Classes that a configuration does not name, and the keys under which their arguments stand."""


def explain_refusal(
    error: Exception, config: Mapping[str, Any], roots: Mapping[str, Callable[..., Any] | None]
) -> ConfigurationError | None:
    """Return the error to show where a class has refused its settings, with their path in the configuration.

    Args:
        error: was caught; the one that a class has raised may be its cause, or the cause of that.
        config: the configuration as nested mappings.
        roots: the class or function behind each first key.

    Returns:
        None where no class has refused its settings: then it is a fault, and its traceback is wanted.
    """
    causes = list(_causes(error))
    if own := next((cause for cause in causes if isinstance(cause, ConfigurationError)), None):
        return with_path(own, config, roots)
    name = _constructor(causes[-1])
    if name is None:
        return None
    where = next(_uses(config, name, roots), name)
    return ConfigurationError(f"`{where}`: `{name}` refuses its settings. It says: {shorten(causes[-1], 300)}")


def with_path(
    error: ConfigurationError, config: Mapping[str, Any], roots: Mapping[str, Callable[..., Any] | None]
) -> ConfigurationError:
    """Return the error with the path of the refused setting in front, if the configuration has such a class.

    Args:
        error: its message begins with `Class.setting`.
        config: the configuration as nested mappings.
        roots: the class or function behind each first key.
    """
    match = re.match(r"`(?P<cls>[A-Z]\w*)(?:\.(?P<setting>\w+))?`", str(error))
    if match is None:
        return error
    uses = _uses(config, match["cls"], roots)
    places = [f"{path}.{match['setting']}" if match["setting"] else path for path in uses]
    fitting = [place for place in places if _value(config, place) in str(error)] or places
    return ConfigurationError(f"`{fitting[0]}`: {error}") if fitting else error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its chain of causes, the original one last."""
    while error is not None:
        yield error
        error = error.__cause__  # type: ignore[assignment]


def _constructor(error: BaseException) -> str | None:
    """Return the name of the class whose constructor raised the error, or None if none did."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("__init__", "__post_init__") and "jsonargparse" not in frame.f_code.co_filename:
            made = frame.f_locals.get("self")
            if not _is_cli_class(type(made)):
                return type(made).__name__
    return None


def _is_cli_class(cls: type) -> bool:
    return any(base.__module__.startswith(("lightning.pytorch.cli", "veto_pl.cli.build")) for base in cls.__mro__)


def _uses(config: Any, name: str, roots: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the paths in the configuration at which the arguments of a class stand."""
    if isinstance(config, list):
        for i, value in enumerate(config):
            yield from _uses(value, name, roots, f"{path}.{i}")
    if not isinstance(config, Mapping):
        return
    if str(config.get("class_path", "")).rsplit(".", 1)[-1] == name:
        yield f"{path}.init_args"
    keys = [key for key, owner in roots.items() if getattr(owner, "__name__", None) == name]
    if path in keys or path.rsplit(".", 1)[-1] in _WITHOUT_CLASS_PATH.get(name, ()):
        yield path
    for key, value in config.items():
        yield from _uses(value, name, roots, f"{path}.{key}" if path else str(key))


def _value(config: Any, path: str) -> str:
    for key in path.split("."):
        config = config[int(key)] if isinstance(config, list) else config.get(key, "")
        if not isinstance(config, Mapping | list):
            break
    return f"got {config}"
