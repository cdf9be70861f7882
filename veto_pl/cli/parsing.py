"""What a command line is parsed with: own defaults for a changed class, classes of the right kind, bounded aliases.

A model or tokenizer may be named by its path or hub id alone.

When a later config or option names another class, jsonargparse keeps every value of the old class that the new one also
accepts: the `beta` of one algorithm would become the `beta` of another, and a GKD that replaces a Veto would train with
Veto's rollout. jsonargparse has no setting for this, so the function that decides what survives is replaced while a
command line is parsed.

jsonargparse also builds whatever is named where a function is expected, `os.system` for an optimizer, and where any
value is: both are refused, again by replacing the functions that decide.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from jsonargparse._util import import_object

from veto_pl.models.given import named_place
from veto_pl.storage.config_files import check_size


@contextmanager
def strict_parsing() -> Iterator[None]:
    """Apply all rules of this file while a command line is parsed."""
    with own_defaults(), right_kinds(), named_places(), short_names(), bounded_yaml():
        yield


@contextmanager
def short_names() -> Iterator[None]:
    """Take the class of the kind's own package where others share its bare name, in the block.

    `SGD` is PyTorch's, also once an import has brought the SGD of bitsandbytes.
    """
    with _replaced("resolve_class_path_by_name", partial(_resolve_own, _typehints.resolve_class_path_by_name)):
        yield


def _resolve_own(resolve: Any, kind: Any, name: str) -> str:
    """Call `resolve`, or raise its `ValueError` where the kind's own package has no class, or several, of this name."""
    try:
        return str(resolve(kind, name))
    except ValueError:
        packages = {of.__module__.partition(".")[0] for of in _typehints.get_class_types(kind)}
        paths = [path.split(".") for path in _typehints.get_all_subclass_paths(kind)]
        own = [".".join(path) for path in paths if path[-1] == name and path[0] in packages]
        if len(own) != 1:
            raise
        return own[0]


@contextmanager
def named_places() -> Iterator[None]:
    """Take a path or hub id for the model, or the tokenizer, that lies there, in the block."""
    with _replaced("adapt_typehints", partial(_adapt_place, _typehints.adapt_typehints)):
        yield


def _adapt_place(adapt: Any, given: Any, hint: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `adapt`, with the class and its path in place of a path alone."""
    place = named_place(hint, given)
    return adapt(given if place is None else dict(place), hint, *args, **kwargs)


@contextmanager
def own_defaults() -> Iterator[None]:
    """Let a class that replaces another inherit none of its values while the block lasts."""
    with _replaced("discard_init_args_on_class_path_change", _discard_all):
        yield


@contextmanager
def right_kinds() -> Iterator[None]:
    """Accept only classes of the annotated kind for a function, and no class for a plain value, in the block."""
    adapt = _typehints.adapt_partial_callable_class
    with (
        _replaced("adapt_partial_callable_class", partial(_adapt_checked, adapt)),
        _replaced("adapt_classes_any", _refuse_class),
    ):
        yield


@contextmanager
def _replaced(name: str, function: Any) -> Iterator[None]:
    original = getattr(_typehints, name)
    setattr(_typehints, name, function)
    try:
        yield
    finally:
        setattr(_typehints, name, original)


def _adapt_checked(adapt: Any, wanted: Any, given: Namespace) -> Any:
    """Call `adapt`, or raise `ValueError` if the class is not of the annotated kind, such as an optimizer."""
    if not _is_function(wanted):  # the help of a class asks as well
        return adapt(wanted, given)
    kind = _typehints.get_callable_return_type(wanted)  # type: ignore[no-untyped-call]
    path = str(given["class_path"])
    if kind is not None:
        path = _typehints.resolve_class_path_by_name(kind, path)
    named = import_object(path)
    fits = inspect.isclass(named) and (issubclass(named, kind) if inspect.isclass(kind) else "__call__" in dir(named))
    if not fits:
        name = kind.__name__ if inspect.isclass(kind) else "callable class"
        raise ValueError(f"Import path {given['class_path']} does not correspond to a subclass of {name}")
    return adapt(wanted, given)


def _is_function(wanted: Any) -> bool:
    """Return whether an annotation asks for a function."""
    return wanted is Callable or typing.get_origin(wanted) is Callable or _typehints.is_protocol(wanted)


def _refuse_class(value: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the value, or raise `ValueError` if a class is named in place of a plain value."""
    if isinstance(value, dict | Namespace) and "class_path" in value:
        raise ValueError(f"Expected a plain value. Got value: {value['class_path']}")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for one in inner:
        _refuse_class(one)
    return value


def _discard_all(parser_or_action: Any, previous: Any, value: Any) -> None:
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]
        if "dict_kwargs" in previous:
            previous["dict_kwargs"] = {}


def plain(value: Any) -> Any:
    """Return a parsed value with texts for members of enumerations, which a class may have as a default.

    YAML has no such members, so `config.yaml` could not be written.
    """
    if isinstance(value, Namespace):
        vars(value).update({name: plain(item) for name, item in vars(value).items()})
    elif isinstance(value, list):
        return [plain(item) for item in value]
    return str(value.value) if isinstance(value, Enum) and isinstance(value, str) else value


@contextmanager
def bounded_yaml() -> Iterator[None]:
    """Refuse YAML whose aliases expand without bound, in values and their files, while the block lasts."""
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
