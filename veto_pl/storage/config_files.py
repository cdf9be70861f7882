"""YAML as a user means it: what nobody means is refused, with file and line, before anything else reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from veto_pl.core.mistakes import Mistake, report, shorten
from veto_pl.storage.paths import local_path

NODES = 100_000
"""Entries that a document may have, those that its aliases repeat included."""
CLASS_SETTINGS = "init_args"
"""In the values below this key, keys may be whole numbers: an argument of a class may be any mapping."""

_ABSENT = object()
_MERGE, _TEXT, _WHOLE = (f"tag:yaml.org,2002:{name}" for name in ("merge", "str", "int"))


class StrictLoader(yaml.SafeLoader):
    """Refuses keys that stand twice or are no text, and aliases that hold themselves or multiply without end."""

    def get_single_node(self) -> Any:
        """Return the document's root, checked before any value is built from it."""
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
            _check_keys(node)
        return node


def load(text: str) -> Any:
    """Return the value of a document; raise `yaml.YAMLError` with the line of what is refused."""
    try:
        return yaml.load(text, Loader=StrictLoader)  # a safe loader
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def check_size(text: str) -> None:
    """Raise `yaml.YAMLError` if aliases contain themselves or expand without bound, or nesting is too deep."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    if node is not None:
        _check_size(node)


def check_files(
    arguments: Iterable[str], groups: Collection[str] = (), derived: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Check the files that `--config` names, before anything else reads them.

    Args:
        arguments: of the command line.
        groups: keys of a configuration that hold settings of their own.
        derived: settings in groups that take the value of another one; no file can set them.

    Raises:
        ConfigurationError: a file is missing, not a regular file, not UTF-8, not YAML, or not a mapping with keys, or
            a group in it holds no settings, or it sets what another setting decides.
    """
    listed = list(arguments)
    for i, argument in enumerate(listed):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c") and (equals or i + 1 < len(listed)):
            _check_file(value if equals else listed[i + 1], groups, derived)


def _check_file(path: str, groups: Collection[str], derived: Mapping[str, str]) -> None:
    file, source = local_path(path), f"--config {shorten(path)}"
    if not file.is_file():  # not a folder, and not a pipe that nobody writes to
        kind = "a path that is no regular file" if file.exists() else "a path where there is no file"
        report([Mistake("--config", f"`{shorten(path)}`, {kind}", "a YAML file", f"It was sought in `{Path.cwd()}`.")])
    try:
        content = load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        report([Mistake(source, f"a file that cannot be read: {reason(error)}", "YAML", "Mend it.")])
    if not isinstance(content, dict) or not content:
        given = "an empty file" if content in (None, {}) else f"{type(content).__name__} `{shorten(content)}`"
        expected = "a mapping such as `model:`, `data:` and `trainer:`"
        report([Mistake(source, given, expected, "See the files in `configs/`.")])
    report([*_bad_groups(content, groups), *_overwritten_settings(content, derived)])


def _bad_groups(content: dict[str, Any], groups: Collection[str]) -> Iterator[Mistake]:
    """Yield the groups that are neither a mapping nor the name of a file with one."""
    for name in groups:
        value = content.get(name, {})
        if not isinstance(value, dict | str) or value == "":
            given = "nothing" if value in (None, "") else f"`{shorten(value)}`"
            yield Mistake(name, given, "a mapping of settings", "Write them below it, or leave it out.")


def _overwritten_settings(content: dict[str, Any], derived: Mapping[str, str]) -> Iterator[Mistake]:
    """Yield the settings that another setting would silently overwrite."""
    for path, source in derived.items():
        group, _, name = path.partition(".")
        settings = content.get(group)
        given = settings.get(name, _ABSENT) if isinstance(settings, dict) else _ABSENT
        if given is not _ABSENT and given != content.get(source, _ABSENT):
            value = "nothing" if given is None else f"`{shorten(given)}`"
            yield Mistake(path, value, f"nothing, for `{source}` decides it", "Set that one.")


def reason(error: Exception) -> str:
    """Return in one line where and why a document cannot be read."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return where + shorten(problem or error, 200)


def _check_size(root: yaml.Node) -> None:
    """Raise `yaml.YAMLError` if the document, its aliases written out, has too many entries or contains itself.

    Entries are counted from the leaves up, and each node once, however often it is repeated.
    """
    sizes: dict[int, int] = {}
    entered: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting[-1]
        children = [] if id(node) in sizes else _children(node)
        if children and id(node) not in entered:
            entered.add(id(node))
            unknown = [child for child in children if id(child) not in sizes]
            if around := next((child for child in unknown if id(child) in entered), None):
                raise _refusal("an alias stands inside of what it repeats", around)
            waiting += unknown
            continue
        waiting.pop()
        sizes.setdefault(id(node), 1 + sum(sizes[id(child)] for child in children))
        if sizes[id(node)] > NODES:
            raise _refusal(f"it has more than {NODES} entries, written out without aliases", node)


def _check_keys(root: yaml.Node) -> None:
    waiting: list[tuple[yaml.Node, int]] = [(root, 0)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        node, depth = waiting.pop()
        if (id(node), depth) in seen:
            continue
        seen.add((id(node), depth))
        if isinstance(node, yaml.MappingNode):
            _check_mapping(node, inside=depth > 1)
            waiting += [
                (value, min(2, depth + (depth > 0 or key.value == CLASS_SETTINGS))) for key, value in node.value
            ]
        else:
            waiting += [(child, depth) for child in _children(node)]


def _check_mapping(node: yaml.MappingNode, *, inside: bool) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag not in (_MERGE, _TEXT) and not (inside and key.tag == _WHOLE):
            name = f" `{shorten(key.value)}`" if isinstance(key, yaml.ScalarNode) else ""
            kind = key.tag.rpartition(":")[2]
            raise _refusal(f"the key{name} is no text but of the type `{kind}`; correct it, or quote it", key)
        if key.tag != _MERGE and key.value in seen:
            raise _refusal(f"the key `{shorten(key.value)}` stands twice in one mapping", key)
        seen.add(key.value)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
