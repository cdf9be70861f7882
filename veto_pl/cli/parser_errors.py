"""What the parser says about a mistake, with its place in the YAML and what may have been meant.

jsonargparse tells the way to a mistake line by line, through its nested parsers. Here the lines are joined to the path
in the YAML. The reason stays as jsonargparse gives it, where it is more than a name that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback
from torch.optim import Optimizer

from veto_pl.cli.class_index import DENOISING, ClassIndex
from veto_pl.cli.seam_classes import SEAMS
from veto_pl.core.mistakes import did_you_mean, shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.plugins import available

_OPTION = re.compile(
    r"(?:(?:Subcommand '\w+'|Group '(?P<group>[\w.]+)') does not accept option|[Oo]ption) '(?P<name>[^']*)'"
    r"|unrecognized arguments: --(?P<argument>[\w.]+)"
)
_PATH_PART = re.compile(
    r"""\s*(?:Parser key ["'](?P<key>[^"']*)["']:?|Problem with given class_path '[^']*':?"""
    r"""|Type .*? expects a function or a callable class:)\s*"""
)
_IN_A_UNION = re.compile(
    r"\s*Does not validate against any of the Union subtypes.*?^(?P<indent> *)- "
    r"(?P<class>Problem with given class_path .*?)(?=^(?P=indent)- |^ *Given value type|\Z)",
    re.MULTILINE | re.DOTALL,
)
"""A class that was named where something else fits as well, as null or a text: what is wrong with the class matters."""
_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Import path (\S+) does not correspond to a subclass of \w+"
    r"|Expected '([\w.]+)' to be a function that returns|(?:No module named|has no attribute) '([^']+)'"
)
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_NUMBER = re.compile(r"Expected a <class '(?:float|int)'>|validation error for constrained-(?:float|int)")
_BOUND = re.compile(r"Input should be ((?:greater|less) than(?: or equal to)? [-+\w.]*\w)")
_EXPECTED = re.compile(
    r"Expected a <class '(?P<kind>\w+)'>|Input should be a valid (?P<number>integer|number)"
    r"|Expected a typing\.Literal\[(?P<choice>[^\]]*)\]|Expected a (?P<path>dot import path)"
)
_KINDS = {
    "int": "a whole number", "integer": "a whole number", "float": "a number", "number": "a number",
    "bool": "true or false", "str": "a text", "tuple": "a list", "list": "a list", "dict": "a mapping",
    "NoneType": "null", "dot import path": "the name of a class",
}  # fmt: skip
"""Types of Python, and of pydantic, in words."""
_NESTED = re.compile(r"NestedArg\(key='(.*?)', val=(['\"]?)(.*)\2\)$")
_GIVEN = re.compile(r"(?:Given value|Got value): (.*?)(?=\. Got value: |$)", re.MULTILINE)


def with_suggestion(message: str, known: Iterable[str]) -> str:
    """Return a parser's message about an unknown option, cut to the first unknown key and with a suggestion.

    Args:
        message: what the parser says; another message is returned as it is.
        known: the parser's options, as dotted paths.
    """
    if (match := _OPTION.match(message)) is None:
        return message
    path = match["argument"] or ".".join(filter(None, [match["group"], match["name"]]))
    keys, options = path.split("."), [option.split(".") for option in known]
    for i, key in enumerate(keys):
        beside = {option[i] for option in options if option[:i] == keys[:i] and len(option) > i} - {"help"}
        if beside and key not in beside:
            meant = did_you_mean(key, beside)
            listed = f" There are: {', '.join(sorted(beside))}." if not meant or len(beside) <= 16 else ""
            unknown = ".".join(keys[: i + 1])
            return f"Option '{unknown}' is not accepted. {meant or 'Correct or remove it.'}{listed}"
    return message


def explained(message: str) -> ConfigurationError:
    """Return the error with the path of the mistake that a user sees instead of the parser's usage."""
    path: list[str] = []
    rest = message
    while match := _PATH_PART.match(rest) or _IN_A_UNION.match(rest):
        if match.re is _IN_A_UNION:
            rest = match["class"]
            continue
        if match["key"] != "config":
            path.append(match["key"] or "init_args")
        rest = rest[match.end() :]
    number = bool(_NUMBER.search(rest))  # a number or the name of a schedule: then the number is what is meant
    if option := _OPTION.match(rest):
        path.append(option["argument"] or option["name"])
        hint = rest[option.end() :].removeprefix(" is not accepted.").partition(". Got value:")[0]
        reason = f"a setting that does not exist.{hint}"
    elif required := _REQUIRED.match(rest):
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in required[1].split(", ")]
        return ConfigurationError(" ".join(f"`{'.'.join([*path, name])}`: a value is required." for name in names))
    elif (named := _CLASS.search(rest)) and not number:
        path = path[:-1] if path[-1:] == ["init_args"] else path
        reason = _unknown_class(next(filter(None, named.groups())))
    else:
        reason = shorten(_refused_value(rest), 400)
    return ConfigurationError(f"`{'.'.join(path)}`: {reason}" if path else reason)


def _refused_value(reason: str) -> str:
    """Say what was given and what was expected, where the parser tells the value that it refuses."""
    if (found := _GIVEN.search(reason)) is None:
        return reason
    given = _NESTED.sub(r"\1: \3", found[1])  # an option `a.b` where `a` has no settings
    if bound := _BOUND.search(reason):
        return f"given `{given}`, expected a number {bound[1]}."
    expected = list(dict.fromkeys(_in_words(match) for match in _EXPECTED.finditer(reason)))
    if not expected:
        return reason
    expected.sort(key=_KINDS["NoneType"].__eq__)  # null is the last one, in whatever order a parser tries them
    return f"given `{given}`, expected {' or '.join(filter(None, [', '.join(expected[:-1]), expected[-1]]))}."


def _in_words(expected: re.Match[str]) -> str:
    """Return what one line of the parser expects, such as `a whole number`."""
    if expected["choice"]:
        return f"one of {expected['choice']}" if "," in expected["choice"] else expected["choice"]
    kind = expected["kind"] or expected["number"] or expected["path"]
    return _KINDS.get(kind, kind)


def _unknown_class(given: str) -> str:
    kinds: list[type[Any]] = [Optimizer, Callback, *(kind for seam in reversed(SEAMS.values()) for kind in seam)]
    known = {cls.__name__: kind for kind in kinds for cls in available(kind)}
    name = given.rsplit(".", 1)[-1]
    if name in known:
        return f"`{given}` is a {known[name].__name__}, which does not belong here. `veto-pl list` shows what does."
    index = ClassIndex()
    if any(one.name == name for bases in DENOISING.values() for base in bases for one in index.of_seam(base)):
        return f"`{given}` belongs to denoising students: `veto-pl diffusion fit` and its neighbours take it."
    return (
        f"given `{given}`, which names no class that fits. {did_you_mean(name, known) or '`veto-pl list` shows some.'}"
    )
