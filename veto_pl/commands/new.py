"""`veto-pl new`: a small package with a part of one's own, which can be installed and keeps the laws of its seam."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from string import Template

from veto_pl.cli.class_index import SEAM_NAMES
from veto_pl.core.mistakes import did_you_mean
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import replacing

FILES = Path(__file__).parent / "new_package"
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
SINGULAR = {seam.removesuffix("s"): seam for seam in SEAM_NAMES}
"""The seams of `veto-pl list` by what one part of them is called."""
DISTILL = "--model.objective Distill --model.objective"
USES = {
    "objectives": "--model.objective",
    "divergences": "--model.objective.divergence",
    "targets": f"{DISTILL}.target",
    "schedules": "--model.objective Veto --model.objective.beta",
    "rollouts": "--model.objective.rollout",
    "engines": "--model.objective.rollout FromStudent --model.objective.rollout.engine",
    "environments": "--model.objective.rollout Played --model.objective.rollout.environment",
    "contexts": "--model.objective.context",
    "panels": "--model.objective.panel",
    "supports": f"{DISTILL}.support",
    "weightings": f"{DISTILL}.weighting",
    "advantages": f"{DISTILL}.advantage",
    "tasks": "--data.task",
    "templates": "--data.template",
    "rewards": "--data.reward",
    "models": "--model.student",
    "scores": "--model.teacher",
    "tokenizers": "--model.tokenizer",
    "metrics": "--model.metrics+",
}
"""Options of `veto-pl fit` that take a part of each seam."""


def new_package(name: str, seams: Sequence[str], folder: Path) -> Path:
    """Write a package with one part of each seam, and return its folder, `folder / name`.

    It has a module and an entry point for each part, a test that runs the conformance suite, and a README.

    Args:
        name: of the package, such as `my-methods`.
        seams: as `veto-pl list` names them, or one part of them, such as `objective`.
        folder: where the package's own folder is made.

    Raises:
        ConfigurationError: the name cannot be that of a package, or is one that is installed; there is no such seam; or
            there is something at the place already, which is left as it is.
    """
    module = _checked(name)
    chosen = list(dict.fromkeys(_seam(seam) for seam in seams))
    place = folder / name
    if place.exists() or place.is_symlink():
        raise ConfigurationError(f"`{place}` is there already, and nothing is overwritten. Choose another name.")
    with replacing(place) as written:
        for path, text in _files(name, module, chosen).items():
            (written / path).parent.mkdir(parents=True, exist_ok=True)
            (written / path).write_text(text, encoding="utf-8")
    return place


def _checked(name: str) -> str:
    """Return the name of the module; raise `ConfigurationError` for a name that cannot be that of a new package."""
    expected = (
        "expected the name of a new package: lower-case words, with `-` or `_` between them, such as `my-methods`"
    )
    if NAME.fullmatch(name) is None:
        raise ConfigurationError(f"given `{name}`, {expected}.")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in packages_distributions():
        raise ConfigurationError(f"given `{name}`, {expected}. `{module}` is the name of one that is installed.")
    if (spec := find_spec(module)) is not None and spec.origin is not None:
        raise ConfigurationError(f"given `{name}`, {expected}. `{module}` is found at {spec.origin} already.")
    return module


def _seam(given: str) -> str:
    if (seam := SINGULAR.get(given, given)) not in SEAM_NAMES:
        hint = did_you_mean(given, SINGULAR)
        raise ConfigurationError(f"`--seam`: given `{given}`, expected one of {', '.join(SINGULAR)}. {hint}".rstrip())
    return seam


def _files(name: str, module: str, seams: Sequence[str]) -> dict[str, str]:
    """Return the text of each file of the package, by its path."""
    own = {seam: seam.removesuffix("s") for seam in seams}
    words = "".join(word.capitalize() for word in module.split("_"))
    parts = {seam: f"{words}{one.capitalize()}" for seam, one in own.items()}
    entries = [f'{module}_{one} = "{module}.{one}"' for one in own.values()]
    uses = [f"- `veto-pl fit --config run.yaml {USES[seam]} {part}`" for seam, part in parts.items() if seam in USES]
    if "judges" in parts:
        uses.append(f"- `veto-pl judge one.jsonl other.jsonl --judge {parts['judges']}`")
    told = {
        "name": name,
        "module": module,
        "parts": ", ".join(parts.values()),
        "names": "\n".join(f'    "{part}",' for part in parts.values()),
        "entries": "\n".join(entries),
        "seams": " ".join(seams),
        "uses": "\n".join(uses),
    }
    files = {file: _filled(file, **told) for file in ("pyproject.toml", "README.md")}
    files["tests/test_conformance.py"] = _filled("test_conformance.py", **told)
    files[f"{module}/__init__.py"] = '"""Parts for veto_pl."""\n'
    for seam, part in parts.items():
        files[f"{module}/{own[seam]}.py"] = _filled(f"{seam}.py", part=part, key=f"{module}_numbers")
    return files


def _filled(file: str, **values: str) -> str:
    return Template((FILES / f"{file}.txt").read_text(encoding="utf-8")).substitute(values)
