"""The loggers of a run: where their files are, that one writes `metrics.csv`, and which run of a service it is."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import replacing
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.journals import ContinuedCSV, MetricsFile
from veto_pl.storage.run_folder import METRICS

IDS = "loggers.json"
"""The file of a run folder that has the ids of the run at services."""
ID_SETTINGS = ("run_id", "id", "experiment_key")
"""What the loggers of MLflow, Weights & Biases and Comet, and others after them, call the id of a run to continue."""
OTHER_NAMES = ("version", "experiment")
"""Settings that may name a run as well."""


class RunLoggers:
    """Makes the loggers that a configuration names, for a run in a folder.

    A logger whose folder is not set keeps its files in that of the run. One that takes the id of a run to continue,
    by a setting of `ID_SETTINGS`, is given the id that it had before, where the run goes on and the configuration
    names none.

    `refusal` is why one of them could not be made: the parser, which tries several readings, keeps it to itself.

    Args:
        folder: of the run.
        continued: whether the run goes on from a checkpoint.
    """

    def __init__(self, folder: Path, *, continued: bool) -> None:
        self._folder = folder
        self._ids = _read_ids(folder / IDS) if continued else {}
        self._made: Counter[str] = Counter()
        self.refusal: ConfigurationError | None = None

    def make(self, kind: type[Any], *arguments: Any, **settings: Any) -> Any:
        """Return a logger of a kind; jsonargparse calls it in place of the class.

        Raises:
            ConfigurationError: the logger refuses its settings, or its package is not installed.
        """
        known = inspect.signature(kind).parameters
        folder = known.get("save_dir")
        if folder is not None and settings.get("save_dir", "") == folder.default:
            settings["save_dir"] = str(self._folder / (folder.default or ""))
        if (name := next((name for name in ID_SETTINGS if name in known), None)) is not None:
            given = [settings.get(other) for other in (*ID_SETTINGS, *OTHER_NAMES)]
            before = self._ids.get(_key(kind, self._made))
            if before is not None and given.count(None) == len(given):
                settings[name] = before
        if kind is CSVLogger and settings.get("version") is not None:  # else its folder has a new number each time
            kind = ContinuedCSV
        try:
            return kind(*arguments, **settings)
        except Exception as error:  # of whatever service
            self.refusal = ConfigurationError(
                f"`trainer.logger`: `{kind.__name__}` refuses its settings. It says: {shorten(error, 600)}"
            )
            raise self.refusal from error

    def with_metrics(self, loggers: Iterable[Logger]) -> list[Logger]:
        """Return the loggers, and one that writes `metrics.csv` into the run's folder if none of them does."""
        given = list(loggers)
        own = os.path.abspath(self._folder)  # `resolve` would look at a folder that may have an impossible name
        files = [one for one in given if isinstance(one, ContinuedCSV)]
        elsewhere = [one for one in files if os.path.abspath(one.log_dir) != own]
        for one in elsewhere:
            one.journal = f"{METRICS} in {one.log_dir}"
        return given if len(files) > len(elsewhere) else [*given, MetricsFile(str(self._folder))]

    def begin(self, loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
        """Give the configuration to every logger, and keep the ids of the runs that services have begun for them.

        A logger that refuses the configuration is warned of: MLflow, for one, changes no parameter of a run that it
        has. What a service raises when it is reached first, such as a missing login, is raised. Call it on the first
        rank.
        """
        made: Counter[str] = Counter()
        ids = dict(self._ids)
        for logger in loggers:
            _ = getattr(logger, "experiment", None)
            try:
                logger.log_hyperparams(dict(config))
            except Exception as error:
                rank_zero_warn(
                    f"`{type(logger).__name__}` did not take the configuration: {shorten(error, 300)} The run goes on; "
                    "its config.yaml has all of it."
                )
            if any(name in inspect.signature(type(logger)).parameters for name in ID_SETTINGS):
                ids[_key(type(logger), made)] = str(logger.version)
        if ids != self._ids:
            self._ids = ids
            _write_ids(self._folder / IDS, ids)


def _key(kind: type[Any], seen: Counter[str]) -> str:
    """Return the name of a logger in the file of ids: its class, with a number from the second one on."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name} {seen[name]}"


def _read_ids(path: Path) -> dict[str, str]:
    try:
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, AttributeError, OSError) as error:
        rank_zero_warn(f"{path} cannot be read, so services begin new runs: {shorten(error)}")
        return {}


def _write_ids(path: Path, ids: Mapping[str, str]) -> None:
    with warn_if_unwritten(path, "begins new runs at services where it is resumed"), replacing(path) as temporary:
        temporary.write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
