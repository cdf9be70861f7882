"""Everything that is installed, of whatever seam: it can be made, named in a configuration, stored and compared."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from veto_pl.cli.seam_classes import SEAMS
from veto_pl.core.part import Part
from veto_pl.metrics import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.plugins import load_plugins
from veto_pl.testing.examples import examples_of, installed, installed_classes, settings_of

load_plugins()

BASES = tuple(base for bases in SEAMS.values() for base in bases)
METRICS = (CompletionMetric, TokenMetric, MetricFamily)
"""Modules with a state: no frozen settings."""
SETTINGS = installed(*(base for base in BASES if base not in METRICS))
CLASSES = installed_classes(*BASES)

of_each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def each(instances: list[Any]) -> pytest.MarkDecorator:
    """Return the decorator that makes one test of every instance."""
    return pytest.mark.parametrize("instance", instances, ids=lambda instance: type(instance).__name__)


@of_each_class
def test_every_class_has_an_example(cls: type[Any]) -> None:
    """Check that every class has an example, without which no other test would check it."""
    examples_of(cls)


@of_each_class
def test_arguments_come_in_the_order_of_the_seam(cls: type[Any]) -> None:
    """Check that a method has its arguments where its seam has those of the same names: they are passed by place."""
    for name, own, seam in _overridden(cls):
        mine, theirs = _places(own), _places(seam)
        moved = [argument for argument in mine if argument in theirs and mine[argument] != theirs[argument]]
        assert not moved, (
            f"`{cls.__name__}.{name}` has its arguments in the order ({', '.join(mine)}), but is called with "
            f"({', '.join(theirs)}). Change the order."
        )


def _overridden(cls: type[Any]) -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any]]]:
    """Yield the methods of seams that a class has of its own, with those of the seam."""
    for base in (base for base in (*BASES, Part) if issubclass(cls, base)):
        for name, seam in vars(base).items():
            own = inspect.getattr_static(cls, name)
            if inspect.isfunction(seam) and inspect.isfunction(own) and own is not seam:
                yield name, own, seam


def _places(function: Callable[..., Any]) -> dict[str, int]:
    """Return the place of each argument that is passed by place."""
    arguments = inspect.signature(function).parameters.values()
    by_place = [one.name for one in arguments if one.kind is one.POSITIONAL_OR_KEYWORD]
    return {name: place for place, name in enumerate(by_place[1:])}


@each(SETTINGS)
def test_settings_are_frozen_hashable_and_picklable(instance: Any) -> None:
    """Check that an instance is frozen, compares and hashes by value, and can be pickled."""
    settings = getattr(type(instance), "__dataclass_params__", None)
    assert getattr(settings, "frozen", False), (
        f"`{type(instance).__name__}` must be a frozen dataclass. Write `@dataclass(frozen=True)` above the class."
    )
    assert pickle.loads(pickle.dumps(instance)) == instance
    assert dataclasses.replace(instance) == instance
    if all(_hashable(getattr(instance, field.name)) for field in dataclasses.fields(instance)):
        assert hash(instance) == hash(dataclasses.replace(instance))


@each(SETTINGS)
def test_a_configuration_makes_the_same_instance(instance: Any) -> None:
    """Check that the parser makes an equal instance from the class path and settings of an instance."""
    seam = next(base for base in BASES if isinstance(instance, base))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=seam)
    read = parser.parse_object({"part": settings_of(instance)})
    assert parser.instantiate_classes(read).part == instance


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
