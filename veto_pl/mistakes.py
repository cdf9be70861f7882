"""Mistakes in a configuration: where they are, what was given, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.exceptions import ConfigurationError
from veto_pl.paths import local_path

SHOWN = 100
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Args:
        path: where it is, in the words of the YAML.
        given: what stands there.
        expected: what could stand there.
        remedy: what to do.
        fatal: whether the run cannot work; else it is pointless or suspicious, and a warning is enough.
    """

    path: str
    given: str
    expected: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"`{self.path}`: given {self.given}, expected {self.expected}. {self.remedy}"


def report(mistakes: Iterable[Mistake]) -> None:
    """Warns of what is suspicious, then raises one `ConfigurationError` that names everything that cannot work."""
    found = list(mistakes)
    for mistake in found:
        if not mistake.fatal:
            rank_zero_warn(str(mistake))
    if fatal := [mistake for mistake in found if mistake.fatal]:
        raise error_of(fatal)


def error_of(mistakes: Sequence[Mistake]) -> ConfigurationError:
    """One error for all of them."""
    if len(mistakes) == 1:
        return ConfigurationError(str(mistakes[0]))
    lines = "".join(f"\n  - {mistake}" for mistake in mistakes)
    return ConfigurationError(f"The configuration has {len(mistakes)} mistakes:{lines}")


def shown(value: object, limit: int = SHOWN) -> str:
    """A value in one short line.

    Example:
        >>> shown("x" * 300, 10)
        'xxxxxxx...'
    """
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence that proposes what may have been meant; empty where nothing is near.

    Example:
        >>> nearest("FowardKL", ["ForwardKL", "SkewKL"])
        'Did you mean `ForwardKL`?'
    """
    by_case = {known.lower(): known for known in names}
    close = [by_case[match] for match in get_close_matches(name.lower(), by_case, n=3, cutoff=0.6)]
    return f"Did you mean {' or '.join(f'`{match}`' for match in close)}?" if close else ""


class _Strict(yaml.SafeLoader):
    """Refuses keys that stand twice in a mapping, of which the loader would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{shown(key.value)}` stands twice in one mapping", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def check_files(arguments: Iterable[str]) -> None:
    """Reads the files that `--config` names, before anything else does.

    Raises:
        ConfigurationError: a file is missing, not a regular file, not UTF-8, not YAML, or not a mapping with keys.
    """
    listed = list(arguments)
    for i, argument in enumerate(listed):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c") and (equals or i + 1 < len(listed)):
            _check_file(value if equals else listed[i + 1])


def _check_file(path: str) -> None:
    file = local_path(path)
    if not file.is_file():  # not a folder, and not a pipe that nobody writes to
        kind = "a path that is no regular file" if file.exists() else "a path where there is no file"
        report([Mistake("--config", f"`{shown(path)}`, {kind}", "a YAML file", f"It was sought in `{Path.cwd()}`.")])
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Strict)  # a safe loader
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        report(
            [Mistake(f"--config {shown(path)}", f"a file that cannot be read: {_reason(error)}", "YAML", "Mend it.")]
        )
    if not isinstance(content, dict) or not content:
        given = "an empty file" if content in (None, {}) else f"{type(content).__name__} `{shown(content)}`"
        expected = "a mapping such as `model:`, `data:` and `trainer:`"
        report([Mistake(f"--config {shown(path)}", given, expected, "See the files in `configs/`.")])


def _reason(error: Exception) -> str:
    """Where and why, in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return where + shown(problem or error, 200)
