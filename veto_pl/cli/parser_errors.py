"""What the parser of the command line says about a mistake, in the words of the configuration.

jsonargparse reports the way through its own nested parsers, several lines deep, below a page of usage. Here the way is
walked again along the signatures, which tells the path in the YAML and what could have stood there. A message that is
not understood is passed on as it is, cut to a few lines.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from veto_pl.cli.listing import SEAMS
from veto_pl.core.mistakes import Mistake, did_you_mean, error_of, shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.plugins import available

_KEY = re.compile(r"""^\s*(?:- )?(?P<made>Type .* expects .*: )?Parser key ["'](?P<key>[^"']*)["']:?\s*(?P<rest>.*)$""")
_CLASS = re.compile(r"^\s*(?:- )?Problem with given class_path '(?P<name>[^']*)':?\s*(?P<rest>.*)$")
_UNKNOWN_CLASS = (
    r"Expected a dot import path string: (?P<given>\S+)",
    r"Import path (?P<given>\S+) does not correspond to a subclass of \w+",
    r"Expected '(?P<given>[\w.]+)' to be a function that returns",
    r"(?:No module named|has no attribute) '(?P<given>[^']+)'",
)
_UNKNOWN_KEY = (
    r"(?:(?:Subcommand|Group) '(?P<group>[^']*)' does not accept option|[Oo]ption) '(?P<given>[^']*)'",
    r"unrecognized arguments: --(?P<given>[\w.]+)",
)
_MISSING = (r"the following arguments are required: (?P<given>.+)",)
_TYPE = (
    r"Expected a (?P<expected>(?!<class 'NoneType'>).+?)\. Got value: (?P<given>.*)",
    r"Expected a (?P<expected>(?!<class 'NoneType'>)(?:typing\.Literal.*|<class .*))",
)
_GIVEN = re.compile(r"Given value: (.*?)(?:\. Got value: .*)?$|Got value: (.*)", re.MULTILINE)
_NUMBER = re.compile(r"Expected a <class '(?:float|int)'>")

FEW = 16
"""So many names are listed; of more, only the near ones are proposed."""


@dataclass
class _Place:
    """A place in the configuration, reached step by step.

    Args:
        roots: the class behind each first key.
        path: the keys so far, as in the YAML.
        owner: the class whose arguments are named here, or None where that is not known.
        seams: the classes that the annotation of this place names.
    """

    roots: Mapping[str, Callable[..., Any] | None]
    path: list[str] = field(default_factory=list)
    owner: Callable[..., Any] | None = None
    seams: tuple[type, ...] = ()
    chosen: bool = False

    def step(self, keys: str) -> None:
        """Goes to an argument; inside a class that was chosen by its name, arguments stand under `init_args`."""
        for key in keys.split("."):
            if self.chosen:
                self.path.append("init_args")
            self.chosen = False
            self.path.append(key)
            if len(self.path) == 1:
                self.owner = self.roots.get(key)
            elif key not in ("init_args", "class_path"):
                self.seams = tuple(classes_in(hints_of(self.owner).get(key)))
                self.owner = next((cls for cls in self.seams if dataclasses.is_dataclass(cls)), None)

    def choose(self, class_path: str) -> None:
        """Goes into the class that stands here."""
        module, _, name = class_path.rpartition(".")
        self.chosen = True
        try:
            self.owner = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            self.owner = None

    def arguments(self) -> list[str]:
        """What can be named here."""
        if not self.path:
            return list(self.roots)
        if self.owner is None:
            return []
        return [name for name in inspect.signature(self.owner).parameters if name not in ("self", "args", "kwargs")]

    def __str__(self) -> str:
        return ".".join(self.path)


def explained(message: str, roots: Mapping[str, Callable[..., Any] | None]) -> ConfigurationError:
    """The error that a user sees instead of the parser's.

    Args:
        message: what the parser says.
        roots: the class or function behind each first key of the configuration.
    """
    place = _Place(roots)
    reason = _walk(message, place)
    readers = _READERS[1:] if not place.seams and _NUMBER.search(reason) else _READERS  # a number, and no class
    for patterns, explain in readers:
        for pattern in patterns:
            if match := re.search(pattern, reason):
                return error_of(explain(place, match, reason))
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    where = f"`{place}`: " if place.path else ""
    return ConfigurationError(where + shorten(" ".join(lines), 400))


def _walk(message: str, place: _Place) -> str:
    """Follows the parser's way to the place of the mistake; returns what is left of the message."""
    rest: list[str] = []
    for line in message.splitlines():
        if (key := _KEY.match(line)) and not rest:
            place.chosen |= key["made"] is not None
            if key["key"] != "config":
                place.step(key["key"])
            line = key["rest"]
        elif (name := _CLASS.match(line)) and not rest:
            place.choose(name["name"])
            line = name["rest"]
        if line.strip():
            rest.append(line)
    return "\n".join(rest)


def _unknown_class(place: _Place, match: re.Match[str], reason: str) -> list[Mistake]:
    given = match["given"].rsplit(".", 1)[-1]
    names = sorted({name for seam in place.seams for name in _names(seam)})
    if module := re.search(r"module '([\w.]+)' has no attribute", reason):
        names = [name for name, value in vars(importlib.import_module(module[1])).items() if inspect.isclass(value)]
    kinds = " or ".join(dict.fromkeys(seam.__name__ for seam in place.seams)) or "class"
    article = "an" if kinds[0] in "AEIOU" else "a"
    expected = f"the name of {article} {kinds}{_listed(names)}"
    more = [f"`veto-pl list {name}` shows all." for name, kinds_ in SEAMS.items() if set(kinds_) & set(place.seams)]
    remedy = _belongs_elsewhere(given, place.seams) or did_you_mean(given, names) or "Correct the name."
    return [Mistake(str(place), f"`{match['given']}`", expected, " ".join([remedy, *more]))]


def _listed(names: Collection[str]) -> str:
    return f" ({', '.join(sorted(names))})" if 0 < len(names) <= FEW else ""


def _belongs_elsewhere(given: str, seams: tuple[type, ...]) -> str:
    """Says so where the name is known behind another seam."""
    others: list[type[Any]] = [kind for kinds in SEAMS.values() for kind in kinds if kind not in seams]
    known = next((kind for kind in others if given in _names(kind)), None)
    return f"`{given}` is a {known.__name__}, which does not belong here." if known else ""


def _names(seam: type[Any]) -> list[str]:
    found: list[type[Any]] = available(seam)
    return [cls.__name__ for cls in found]


def _unknown_key(place: _Place, match: re.Match[str], reason: str) -> list[Mistake]:
    group = match.groupdict().get("group")
    if group and "Group" in match[0] and not str(place).endswith(group):
        place.step(group)
    if inside := re.search(r"class_path='([\w.]+)'", reason):
        place.choose(inside[1])
    *way, name = _as_far_as_known(place, match["given"])
    for key in way:
        place.step(key)
    known = place.arguments()
    where = ".".join(filter(None, [str(place), "init_args" if place.chosen else "", name]))
    remedy = did_you_mean(name, known) or "Correct or remove it."
    return [Mistake(where, "a setting that does not exist", f"a setting of that place{_listed(known)}", remedy)]


def _as_far_as_known(place: _Place, given: str) -> list[str]:
    """The keys up to the first one that does not exist."""
    probe = dataclasses.replace(place, path=list(place.path))
    keys: list[str] = []
    for key in given.split("."):
        keys.append(key)
        if (known := probe.arguments()) and key not in known:
            break
        probe.step(key)
    return keys


def _missing(place: _Place, match: re.Match[str], reason: str) -> list[Mistake]:
    prefix = f"{place}{'.init_args' if place.chosen else ''}." if place.path else ""
    names = [re.sub(r"^(fit|validate|test|predict)\.", "", name.strip()) for name in match["given"].split(",")]
    return [Mistake(prefix + name, "nothing", "a value, for it has no default", "Set it.") for name in names]


def _wrong_type(place: _Place, match: re.Match[str], reason: str) -> list[Mistake]:
    given = match.groupdict().get("given")
    if given is None:
        found = _GIVEN.search(reason)
        given = next(filter(None, found.groups()), "") if found else "another type"
    alternatives = dict.fromkeys(_readable(m["expected"]) for m in re.finditer(_TYPE[1], reason))
    expected = " or ".join(alternatives) or _readable(match["expected"])
    if re.search(r"Expected a <class 'NoneType'>", reason):
        expected += " or null"
    return [Mistake(str(place), f"`{shorten(given)}`", expected, "Correct the value.")]


def _readable(expected: str) -> str:
    """The parser's name of a type, in the words of the YAML."""
    if literal := re.search(r"Literal\[(.*?)\]", expected):
        return f"one of {literal[1]}"
    name = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>.*", r"\1", expected).strip()
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    return words.get(name, f"a {name}")


_READERS: tuple[tuple[tuple[str, ...], Callable[[_Place, re.Match[str], str], list[Mistake]]], ...] = (
    (_UNKNOWN_CLASS, _unknown_class),
    (_MISSING, _missing),
    (_UNKNOWN_KEY, _unknown_key),
    (_TYPE, _wrong_type),
)


def hints_of(owner: Callable[..., Any] | None) -> dict[str, Any]:
    """The annotations of a class's arguments; none where they cannot be read."""
    if owner is None:
        return {}
    try:
        return typing.get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
    except (NameError, TypeError, AttributeError):
        return {}


def classes_in(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names, also inside unions, lists and mappings, or as what a function makes."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Callable:
        yield from classes_in(arguments[-1])
    elif typing.get_origin(annotation) in (typing.Union, UnionType, list, tuple, dict):
        for argument in arguments:
            yield from classes_in(argument)
    elif inspect.isclass(annotation) and annotation.__module__ != "builtins":
        yield annotation
