"""What a command line is parsed with: a changed class starts from its own defaults, and aliases in YAML are bounded.

When a later config or option names another class, jsonargparse keeps every value of the old class that the new one also
accepts: the `beta` of one algorithm would become the `beta` of another, and a GKD that replaces a Veto would train with
Veto's rollout. jsonargparse has no setting for this, so the function that decides what survives is replaced while a
command line is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader

from veto_pl.config_files import check_size

_DECIDES = "discard_init_args_on_class_path_change"


@contextmanager
def own_defaults() -> Iterator[None]:
    """While this is active, a class that replaces another inherits none of its values."""
    original = getattr(_typehints, _DECIDES)
    setattr(_typehints, _DECIDES, _discard_all)
    try:
        yield
    finally:
        setattr(_typehints, _DECIDES, original)


def _discard_all(parser_or_action: Any, previous: Any, value: Any) -> None:
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]
        if "dict_kwargs" in previous:
            previous["dict_kwargs"] = {}


def plain(value: Any) -> Any:
    """Returns a parsed value with texts for members of enumerations, which a class may have as a default.

    YAML has no such members, so `config.yaml` could not be written.
    """
    if isinstance(value, Namespace):
        vars(value).update({name: plain(item) for name, item in vars(value).items()})
    elif isinstance(value, list):
        return [plain(item) for item in value]
    return str(value.value) if isinstance(value, Enum) and isinstance(value, str) else value


@contextmanager
def bounded_yaml() -> Iterator[None]:
    """While this is active, no value and no file of a value is read whose aliases multiply without end."""
    original = get_loader("yaml")

    def load(text: str) -> Any:
        check_size(text)
        try:
            return original(text)
        except TypeError:  # it joins the keys of `{0}`, to find that this is a text
            return text

    set_loader("yaml", load, (yaml.YAMLError,))
    try:
        yield
    finally:
        set_loader("yaml", original, (yaml.YAMLError,))
