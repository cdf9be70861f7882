"""The model card of an export that others read: without paths of this machine, with data, metrics and licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from veto_pl.charts.text import number
from veto_pl.report.columns import Quantity
from veto_pl.report.run import Run
from veto_pl.report.table import ResultTable
from veto_pl.storage.run_folder import METRICS

CONFIG = re.compile(r"(## Training configuration\n\n```yaml\n)(.*?)(\n```)", re.DOTALL)
"""The configuration in the card of an export."""
INSIDE = re.compile(r"""(?<![\w.:/~])~?/(?:[^\s/'"]+/)+[^\s/'",)\]}]*|\b(?:file|sqlite):/+\S+""")
"""A path of a machine inside a text: absolute, with a folder in it; no address of the web."""
WHOLE = re.compile(r"[~/][^\n]*/[^\n]*")
"""A text that is such a path as a whole, with blanks in it, too."""
REPO = re.compile(r"[\w.-]+/[\w.-]+")
"""A name of the hub."""


@dataclass(frozen=True)
class HubCard:
    """What is told of an export on the hub.

    Args:
        card: of the export, as it was written.
        repo: its name on the hub, `owner/name`.
        licence: an identifier of the hub, such as `apache-2.0`; None leaves it out.
        run: that made the export; None where it is not known.
    """

    card: str
    repo: str
    licence: str | None = None
    run: Run | None = None

    def text(self) -> str:
        """Return the card."""
        body = self.card.partition("---\n")[2].partition("---\n")[2] or self.card
        body = re.sub(r"^# .*$", f"# {self.repo.rpartition('/')[2]}", body, count=1, flags=re.MULTILINE)
        body = re.sub(r'(pipeline\("text-generation", model=)"[^"]*"', rf'\1"{self.repo}"', body)
        told = CONFIG.search(body)
        config = _read(told[2]) if told else {}
        if told:
            shown = yaml.safe_dump(without_paths(config), sort_keys=False, width=110) if config else "not recorded"
            body = body[: told.start()] + told[1] + shown.strip() + told[3] + body[told.end() :]
        sections = "".join(part for part in (_data(config), self._metrics(config)) if part)
        before, mark, after = body.partition("## Training configuration")
        return f"---\n{self._front(config)}---\n{without_paths(before)}{sections}{mark}{without_paths(after)}"

    def _front(self, config: Mapping[str, Any]) -> str:
        front: dict[str, Any] = {"library_name": "transformers", "tags": ["knowledge-distillation", "veto_pl"]}
        front["pipeline_tag"] = "text-generation"
        if self.licence is not None:
            front["license"] = self.licence
        if base := _hub_name(config, "model", "student", "init_args", "path"):
            front["base_model"] = base
        if data := _hub_data(config):
            front["datasets"] = [data]
        return yaml.safe_dump(front, sort_keys=False)

    def _metrics(self, config: Mapping[str, Any]) -> str:
        """Return the validation of the weights that were exported: the last one, or that of the best checkpoint."""
        if self.run is None or self.run.missing(METRICS):
            return ""
        curves = {name: curve for name, curve in self.run.curves().items() if name.startswith("validation/")}
        step = max((curve.steps[-1] for curve in curves.values()), default=None)
        monitor, most = _at(config, "checkpoint", "monitor"), _at(config, "checkpoint", "mode") == "max"
        if _at(config, "export", "which") == "best" and (curve := curves.get(str(monitor))):
            step = (max if most else min)(zip(curve.values, curve.steps, strict=True))[1]
        rows: dict[str, list[str | float | None]] = {}
        for name, curve in curves.items():
            quantity, at = Quantity.of(name, self.run.shown), dict(zip(curve.steps, curve.values, strict=True))
            if step in at:
                rows[quantity.label] = [number(at[step] * quantity.factor)]
        if not rows:
            return ""
        table = ResultTable(["value"], rows, label="metric").markdown()
        return f"## Validation\n\nAfter {step:g} optimizer steps, on the validation rows of the run:\n\n{table}\n"


def without_paths(value: Any) -> Any:
    """Return texts, at any depth of a mapping or list, with the last name of each path of this machine in its place.

    >>> without_paths({"path": "/home/me/my models/teacher", "hub": "openai/gsm8k", "url": "https://a.b/c/d"})
    {'path': '.../teacher', 'hub': 'openai/gsm8k', 'url': 'https://a.b/c/d'}
    """
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if WHOLE.fullmatch(value):
        return _last(value)
    return INSIDE.sub(lambda found: _last(found[0]), value)


def _last(path: str) -> str:
    return f".../{path.rstrip('/').rpartition('/')[2]}"


def _read(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _at(config: Any, *keys: str) -> Any:
    """Return what stands in nested mappings; None where something is missing."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _hub_name(config: Mapping[str, Any], *keys: str) -> str | None:
    """Return a value that is a name on the hub, and no folder here."""
    name = _at(config, *keys)
    return name if isinstance(name, str) and REPO.fullmatch(name) and not Path(name).exists() else None


def _hub_data(config: Mapping[str, Any]) -> str | None:
    """Return the data set of the hub that the task has read, where it has read no files instead."""
    given = _at(config, "data", "task", "init_args") or {}
    files = [value for name, value in given.items() if name in ("train", "validation") or name.endswith("path")]
    return None if any(files) else _hub_name(config, "data", "task", "init_args", "hub")


def _data(config: Mapping[str, Any]) -> str:
    task = _at(config, "data", "task", "class_path")
    if not isinstance(task, str):
        return ""
    name, given = task.rpartition(".")[2], _at(config, "data", "task", "init_args") or {}
    files = {key: without_paths(value) for key, value in given.items() if isinstance(value, str)}
    told = ", ".join(f"{key} `{value}`" for key, value in files.items() if key in ("hub", "train", "validation"))
    return f"## Data\n\nThe task `{name}`{f' ({told})' if told else ''}.\n\n"
