"""The file of a study, read with the options that replace entries of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from veto_pl.compare.run_kinds import KINDS
from veto_pl.compare.study import EqualBudget, Method, SettingSearch, Stage, Study
from veto_pl.core.mistakes import did_you_mean, shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.config_files import load, reason

_PARTS = {"methods": Method, "stages": Stage, "budget": EqualBudget, "search": SettingSearch}
_TEXTS = ("title", "intro", "baseline", "runs", "search.metric", "search.mode")


def load_study(file: Path, options: Sequence[str] = ()) -> Study:
    """Read a study's file; `options` such as `--seeds=[1,2]` replace the entries that they name.

    Raises:
        ConfigurationError: the file, an option, or a value cannot be used.
    """
    if not file.is_file():
        raise ConfigurationError(f"`veto-pl compare` expected the file of a study, got `{file}`, which is no file.")
    try:
        content = load(file.read_text(encoding="utf-8"))
        _replace_entries(content, list(options))
        return TypeAdapter(Study).validate_python(_completed(content))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"The study `{file}` cannot be used: {reason(error)}. Mend it.") from error
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise ConfigurationError(f"The study `{file}` cannot be used: {problems}.") from error


def _completed(content: Any) -> Any:
    """Return the entries of a file with those that its kind of runs has by default; others are refused later."""
    name = content.get("runs", "texts") if isinstance(content, dict) else None
    search = content.get("search", {}) if isinstance(content, dict) else None
    if not (isinstance(name, str) and name in KINDS and isinstance(search, dict)):
        return content
    entries = KINDS[name].entries
    return {**entries, **content, "search": {**entries["search"], **search}}


def _replace_entries(content: Any, options: list[str]) -> None:
    while options:
        option = options.pop(0)
        place, equals, value = option.partition("=")
        if not place.startswith("--") or not (equals or options):
            raise ConfigurationError(f"`veto-pl compare` expected options such as --seeds=[1,2], got `{option:.80}`.")
        place, value = place.removeprefix("--"), value if equals else options.pop(0)
        *groups, name = place.split(".")
        within = content
        for group in groups:
            within = within.setdefault(group, {}) if isinstance(within, dict) else None
        if not isinstance(within, dict):
            raise ConfigurationError(f"`--{place}` expected named entries around `{name}`, the study has none.")
        within[name] = value if place in _TEXTS else load(value)


def _problem(found: ErrorDetails) -> str:
    """Return a sentence on where a mistake is, and on the entries that are allowed there."""
    place = [str(part) for part in found["loc"] if part != "[key]"]
    where = f"`{'.'.join(place)}`: " if place else ""
    if found["type"] == "unexpected_keyword_argument":
        known = [part.name for part in fields(Study if len(place) == 1 else _PARTS[place[0]])]
        return f"{where}there is no such entry. {did_you_mean(place[-1], known)} There are {', '.join(known)}"
    error = found.get("ctx", {}).get("error", found["msg"])
    own = isinstance(error, ConfigurationError)  # it says what was given
    return str(error).rstrip(".") if own else f"{where}{error}, got {shorten(found['input'])}"
