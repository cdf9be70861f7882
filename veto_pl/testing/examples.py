"""Instances of every class that the conformance suite checks, and the arguments of a debug run of one.

A class whose defaults do not make an instance, or not one that fits tiny models and a vocabulary of two, or that has
settings worth checking beside its defaults, has a class method of its own:

    @classmethod
    def examples(cls) -> tuple["Mine", ...]:
        return cls(), cls(strength=0.0)

Completions are cut to a few tokens here, so lengths need no thought. The first example is also what an objective is
trained with for a few steps. A class that reads files gets an empty folder to write some into: `examples(cls, folder)`.
An empty tuple leaves a class out, such as one that needs a server.

A reward, judge or template that reads fields of the row says which rows it reads, by a class method `example_rows()`
that returns a tuple of `Example`.
"""

from __future__ import annotations

import atexit
import inspect
import json
import shutil
import tempfile
from abc import ABC
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any, TypeVar

from veto_pl.core.nested import changed
from veto_pl.plugins import GROUP, available, load_plugins
from veto_pl.rollouts import Sampling
from veto_pl.seams import Example, Objective

Part = TypeVar("Part")
SHORT = 4
"""The longest completion of an example, in tokens."""
FIELDS = ("prompt", "question", "problem", "instruction", "text")
"""Fields of a row that hold its prompt, where a class does not say which rows it reads."""


def examples_of(cls: type[Any], longest: int = SHORT) -> tuple[Any, ...]:
    """Return the class's own `examples()`, or the instance that its defaults make; completions are cut to `longest`.

    `examples` is not inherited, as a subclass has other fields. `conformance_example`, which returns one instance and
    is inherited, is the older name.

    Raises:
        AssertionError: no instance can be made; the message says what to do.
    """
    own = next((name for name in ("examples", "conformance_example") if _has(cls, name)), None)
    try:
        found = (cls(),) if own is None else _asked(cls, own)
        found = found if isinstance(found, tuple) else (found,)
    except Exception as error:
        raise AssertionError(_without_example(cls, own, error)) from error
    for instance in found:
        assert isinstance(instance, cls), f"`{cls.__name__}.{own}()` must return one, got {instance!r}."
    return tuple(shortened(instance, longest) for instance in found)


def rows_of(part: Any, *rows: tuple[str, str | None]) -> tuple[Example, ...]:
    """Return the rows that the class of a part says it reads, or else rows of these prompts and references."""
    if hasattr(type(part), "example_rows"):
        own: tuple[Example, ...] = type(part).example_rows()
        return own
    return tuple(example_of(prompt, reference) for prompt, reference in rows)


def example_of(prompt: str, reference: str | None = "There.") -> Example:
    """Return a row whose fields all hold the prompt."""
    return Example(prompt, reference, dict.fromkeys(FIELDS, prompt))


def shortened(part: Part, longest: int = SHORT) -> Part:
    """Return the part with every `max_new_tokens` in it, at any depth, lowered to at most `longest`."""

    def short(sampling: Sampling) -> Sampling:
        fits = sampling.max_new_tokens <= longest
        return sampling if fits else replace(sampling, max_new_tokens=longest)

    return changed(part, Sampling, short)


def settings_of(part: Any) -> Any:
    """Return the configuration that makes this part: class path and the settings that differ from the defaults."""
    if isinstance(part, Mapping):
        return {name: settings_of(value) for name, value in part.items()}
    if isinstance(part, tuple | list):
        return [settings_of(value) for value in part]
    if not is_dataclass(part) or isinstance(part, type):
        return part
    # What fills a seam is named, and says what is not the default. What only groups settings, as `Sampling` does, says
    # all: elsewhere it may stand for another default.
    seam = isinstance(part, ABC)
    given = [field.name for field in fields(part) if field.init and not (seam and _is_default(part, field))]
    settings = {name: settings_of(getattr(part, name)) for name in given}
    if not seam:
        return settings
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": settings}


def arguments_of(objective: Objective) -> list[str]:
    """Return the command-line arguments that train with this objective, without a teacher if it needs none."""
    argument = f"--model.objective={json.dumps(settings_of(objective))}"
    return [argument] if objective.needs_teacher else [argument, "--model.teacher=null"]


def _is_default(part: Any, field: Field[Any]) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return default is not MISSING and getattr(part, field.name) == default


def installed_classes(*seams: type[Any]) -> list[type[Any]]:
    """Return the classes behind the seams that installed packages define, without those that tests define."""
    return [cls for seam in seams for cls in available(seam) if _root(cls.__module__) in _packages()]


def installed(*seams: type[Any]) -> list[Any]:
    """Return the examples of all installed classes; another test reports a class that has none."""
    return [instance for cls in installed_classes(*seams) for instance in _examples_if_any(cls)]


def first_examples(longest: int) -> dict[str, Objective]:
    """Return the first example of every installed objective, by the name of its class."""
    load_plugins()
    return {cls.__name__: found[0] for cls in installed_classes(Objective) if (found := _examples_if_any(cls, longest))}


def _examples_if_any(cls: type[Any], longest: int = SHORT) -> tuple[Any, ...]:
    try:
        return examples_of(cls, longest)
    except AssertionError:
        return ()


def _asked(cls: type[Any], own: str) -> Any:
    method = getattr(cls, own)
    if not inspect.signature(method).parameters:
        return method()
    key: Any = cls
    return method(_folder(key))


@cache
def _folder(cls: type[Any]) -> Path:
    """Return a folder for the files of a class's examples, which is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"{cls.__name__}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _has(cls: type[Any], name: str) -> bool:
    return name in vars(cls) if name == "examples" else hasattr(cls, name)


def _without_example(cls: type[Any], own: str | None, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if own:
        return f"`{cls.__name__}.{own}()` failed ({reason}), so none of its laws was checked. Repair it."
    return (
        f"`{cls.__module__}.{cls.__name__}` cannot be made from its defaults ({reason}), so none of its laws was "
        "checked. Give it a class method `examples()` that returns a tuple of instances for tiny models; the page on "
        "plug-ins shows one."
    )


@cache
def _packages() -> frozenset[str]:
    announced = (_root(entry.module) for entry in entry_points(group=GROUP))
    return frozenset({"veto_pl", *packages_distributions(), *announced})


def _root(module: str) -> str:
    return module.partition(".")[0]
