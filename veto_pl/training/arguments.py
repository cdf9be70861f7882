"""The arguments of a module as plain values, which checkpoints and loggers hold, and a module made from them again.

A checkpoint names classes. It cannot import any: only those of this package are known, and those of modules that the
process has imported already.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from veto_pl.core.bounds import Bounded
from veto_pl.core.descriptions import NotPlainError, described, rebuilt
from veto_pl.core.sampling import Sampling
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import MetricFamily
from veto_pl.training.optimizer_groups import class_of, default_optimizer

OPTIMIZER = "optimizer"
"""The key under which stands the class of an optimizer."""
UNKNOWN = "unknown"
"""The key under which stands, as a text, what cannot be told in plain values."""
OWN = re.compile(r"(veto_pl|torch\.optim)(\.[a-z][a-z0-9_]*)+")
"""Modules that a name in a checkpoint may import: they do nothing else than to define."""
DESCRIBED = (Bounded, MetricFamily, Sampling)
"""What the arguments of a module are made of; parts are `Bounded`."""


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by name in plain values; what is none stands as its text under `unknown`."""
    return {name: _plain(value) for name, value in arguments.items()}


def made_again(told: Any, given: Mapping[str, Any], kind: type, place: str | Path, *, trusted: bool) -> dict[str, Any]:
    """Return the arguments of a module that a checkpoint tells, with those that are given in their place.

    Args:
        told: what `plain_arguments` has returned; anything else where the checkpoint tells nothing.
        given: arguments from the user.
        kind: the class of the module.
        place: the checkpoint, for errors.
        trusted: whether code that belongs to a model may run.

    Raises:
        ConfigurationError: an argument is neither given nor told; all of them are named.
    """
    accepted = inspect.signature(kind).parameters
    made, missing = dict(given), {}
    for name, value in (told if isinstance(told, Mapping) else {}).items():
        if name in accepted and name not in given:
            try:
                made[name] = _made(name, value, trusted=trusted)
            except ConfigurationError as error:
                missing[name] = str(error)
    for name, parameter in accepted.items():
        if parameter.default is inspect.Parameter.empty and name not in made:
            missing.setdefault(name, "It is not told there.")
    if missing:
        reasons = " ".join(f"`{name}`: {reason}" for name, reason in missing.items())
        call = ", ".join(f"{name}=..." for name in missing)
        raise ConfigurationError(
            f"The checkpoint `{place}` does not tell every argument of `{kind.__name__}`. {reasons} Pass what the run "
            f"had: `{kind.__name__}.load_from_checkpoint(path, {call})`."
        )
    return made


def _plain(value: Any) -> Any:
    if callable(value) and not isinstance(value, DESCRIBED):
        return _plain_optimizer(value)
    try:
        return described(value, _name)
    except NotPlainError as error:
        return _unknown(error.args[0])


def _plain_optimizer(given: Callable[..., Any]) -> Any:
    """Return what makes an optimizer: the default one as None, a class as its name and settings."""
    cls = class_of(given)
    if given is default_optimizer:
        return None
    if not (inspect.isclass(cls) and issubclass(cls, Optimizer)):
        return _unknown(given)
    try:
        settings = described(dict(given.keywords) if isinstance(given, partial) else {}, lambda _: None)
    except NotPlainError:
        return _unknown(given)
    return {OPTIMIZER: f"{cls.__module__}.{cls.__qualname__}", "settings": settings}


def _unknown(value: object) -> dict[str, str]:
    kind = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    return {UNKNOWN: f"{kind.__module__}.{kind.__qualname__}"}


def _made(name: str, told: Any, *, trusted: bool) -> Any:
    """Return an argument; an optimizer that is not told is missed where it is asked for, for not every use trains."""
    if name == "optimizer":
        return _made_optimizer(told)
    if isinstance(told, Mapping) and UNKNOWN in told:
        raise ConfigurationError(f"It was made by `{told[UNKNOWN]!s:.100}`, which is more than plain values.")
    return rebuilt(told, _part_at, trust_remote_code=trusted)


def _made_optimizer(told: Any) -> Callable[..., Any]:
    if told is None:
        return default_optimizer
    cls = _class_at(str(told.get(OPTIMIZER)), Optimizer) if isinstance(told, Mapping) else None
    if cls is None:
        return partial(_miss_optimizer, told)
    return partial(cls, **rebuilt(dict(told["settings"]), _part_at, trust_remote_code=False))


def _miss_optimizer(told: Any, _: Any) -> Optimizer:
    raise ConfigurationError(
        f"The checkpoint does not tell the optimizer in plain values, only `{told!s:.100}`. To train on, pass it: "
        "`load_from_checkpoint(path, optimizer=...)`."
    )


def _name(cls: type) -> str | None:
    """Return the name by which a class of a part can be found again; None for one inside of another, or no part."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return name if _part_at(name) is cls else None


def _part_at(name: str) -> type | None:
    return _class_at(name, DESCRIBED)


def _class_at(name: str, kind: type | tuple[type, ...]) -> type | None:
    """Return a class by its name; None for one that is of another kind, or of a module that nobody has imported."""
    module, _, own = name.rpartition(".")
    if OWN.fullmatch(module):
        with suppress(ImportError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), own, None)
    return found if isinstance(found, type) and issubclass(found, kind) else None
