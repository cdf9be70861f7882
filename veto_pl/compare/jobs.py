"""The runs of a study: their names, their settings, and what makes a finished one out of date."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from veto_pl.compare.run_kind import RunKind, Settings
from veto_pl.compare.run_kinds import KINDS
from veto_pl.compare.study import Method, Stage, Study
from veto_pl.exceptions import ConfigurationError, DataError

Point = Mapping[str, float]
"""Place of a setting -> its value."""
JOB, DONE, LOG, FAILURE = "job.json", "done.json", "run.log", "failure.txt"
"""Files of a run: its fingerprint as it starts, and again when it is finished; its output; why it failed."""
_LONGEST = 100  # characters of a folder's name; systems know no more than 255 bytes


class Record(BaseModel):
    """What `job.json` and `done.json` say of a run."""

    name: str = ""
    fingerprint: str

    @classmethod
    def read(cls, file: Path) -> Record | None:
        """Return the record in a file, or None where there is no readable one."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class Job:
    """One run: a training, and the evaluations of what it made.

    Args:
        name: for people.
        folder: where it writes.
        files: files of settings, in order.
        settings: settings that follow the files.
        evaluations: name -> settings of `veto-pl test`, which follow those of the training.
        stage_fingerprints: fingerprints of the runs that it starts from.
        stage_folders: their folders.
        devices: processes that it trains on.
        kind: how it is trained and tested.
        tested: whether what it makes, or what its search chooses, is tested on the test split.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    settings: Settings
    evaluations: Mapping[str, Settings] = field(default_factory=dict)
    stage_fingerprints: tuple[str, ...] = ()
    stage_folders: tuple[Path, ...] = ()
    devices: int = 1
    kind: RunKind = KINDS["texts"]
    tested: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes where another run would come out; not where the same folders are only named otherwise."""
        texts = [_read(file) for file in self.files]
        stages = dict(zip(map(str, self.stage_folders), self.stage_fingerprints, strict=True))
        settings = replaced(self.settings, stages)
        content = [version("veto_pl"), texts, settings, dict(self.evaluations), list(self.stage_fingerprints)]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def is_done(self) -> bool:
        """Whether the run is finished, with these very settings."""
        record = Record.read(self.folder / DONE)
        return record is not None and record.fingerprint == self.fingerprint

    @property
    def failure(self) -> str | None:
        """Why the last attempt of the run, with these very settings, failed; None where it did not."""
        record = Record.read(self.folder / JOB)
        if record is None or record.fingerprint != self.fingerprint or not (self.folder / FAILURE).is_file():
            return None
        return (self.folder / FAILURE).read_text(encoding="utf-8")


@dataclass(frozen=True)
class JobFactory:
    """Makes the runs of a study.

    Args:
        study: what is compared.
        home: the folder that the study's file names its files from.
        folder: where everything is written.

    Raises:
        ConfigurationError: two methods have names so alike that they would share a folder.
    """

    study: Study
    home: Path
    folder: Path

    def __post_init__(self) -> None:
        folders: dict[str, str] = {}
        for name in self.study.methods:
            other = folders.setdefault(slug(name).casefold(), name)
            if other != name:
                raise ConfigurationError(
                    f"The methods {other!r:.80} and {name!r:.80} of a study would share a folder. Rename one of them."
                )

    def stages(self, name: str) -> list[Job]:
        """Return the runs of a stage: one, or one for every seed of the comparison and the search."""
        if not self.study.stages[name].per_seed:
            return [self._stage(name, 0)]
        searched = self.study.search.seeds if self.study.searches else ()
        return [self._stage(name, seed) for seed in sorted({*self.study.seeds, *searched})]

    def search(self, method: str, point: Point, seed: int) -> Job:
        """Return a run of the search, which never reads the test split."""
        return self._run(method, point, seed, self.folder / "search" / slug(method) / slug(label(point)))

    def trial(self, method: str, point: Point, seed: int) -> Job:
        """Return a run of the comparison, which is tested at the end."""
        job = self._run(method, point, seed, self.folder / "trials" / slug(method))
        return replace(job, evaluations={name: self._test(of) for name, of in self.study.evaluations.items()})

    def _run(self, name: str, point: Point, seed: int, folder: Path) -> Job:
        method = self.study.methods[name]
        settings = (self.study.student, method.settings, self.study.budget.settings, *map(nested, point.items()))
        title = ", ".join([name, *([label(point)] if point else []), f"seed {seed}"])
        job = self._job(title, method, seed, settings, folder / f"seed-{seed}", list(self.study.stages))
        return replace(job, tested=True)

    def _stage(self, name: str, seed: int) -> Job:
        stage, earlier = self.study.stages[name], list(self.study.stages)
        own = seed if stage.per_seed else 0
        title = f"stage {name}, seed {own}" if stage.per_seed else f"stage {name}"
        job = self._job(title, stage, own, (stage.settings,), Path(), earlier[: earlier.index(name)])
        # Studies side by side share the stages that have the same settings.
        return replace(job, folder=self.folder.parent / "stages" / f"{slug(name)}-{job.fingerprint}")

    def _job(
        self, title: str, of: Stage | Method, seed: int, own: Sequence[Settings], folder: Path, stages: Sequence[str]
    ) -> Job:
        # Tuples become lists: YAML has no others.
        settings = replaced(merged({"seed_everything": seed}, self.study.settings, *own), {})
        started = {
            name: self._stage(name, seed) for name in stages if replaced(settings, {_place(name): ""}) != settings
        }
        return Job(
            name=title,
            folder=folder,
            files=tuple((self.home / file).resolve() for file in (*self.study.config, *of.config)),
            settings=replaced(settings, {_place(name): str(stage.folder) for name, stage in started.items()}),
            stage_fingerprints=tuple(stage.fingerprint for stage in started.values()),
            stage_folders=tuple(stage.folder for stage in started.values()),
            devices=self.study.devices,
            kind=self.study.runs,
        )

    def _test(self, evaluation: Settings) -> Settings:
        return merged(self.study.test, self.study.runs.test_settings(evaluation, self.study.answers))


def merged(*parts: Settings) -> Settings:
    """Lay nested mappings over each other; the later one wins where both have a value.

    A class that replaces another one inherits nothing from it.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    result: Settings = {}
    for part in parts:
        for key, value in part.items():
            old = result.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                another_class = "class_path" in value and value["class_path"] != old.get("class_path")
                value = value if another_class else merged(old, value)
            result[key] = value
    return result


def nested(setting: tuple[str, Any]) -> Settings:
    """Return a mapping that has a value at a place.

    Example:
        >>> nested(("model.optimizer.lr", 0.1))
        {'model': {'optimizer': {'lr': 0.1}}}
    """
    place, value = setting
    for key in reversed(place.split(".")):
        value = {key: value}
    return dict(value)


def replaced(settings: Any, words: Mapping[str, str]) -> Any:
    """Return settings with other words in all their strings.

    Example:
        >>> replaced({"path": ["{start}/export", "{other}"]}, {"{start}": "runs/1"})
        {'path': ['runs/1/export', '{other}']}
    """
    if isinstance(settings, dict):
        return {key: replaced(value, words) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [replaced(value, words) for value in settings]
    if isinstance(settings, str):
        for word, other in words.items():
            settings = settings.replace(word, other)
    return settings


def label(point: Point) -> str:
    """Describe a point of the grid for people.

    Example:
        >>> label({"model.optimizer.init_args.lr": 1e-3})
        'lr 0.001'
    """
    return ", ".join(f"{place.rpartition('.')[2]} {_short(value)}" for place, value in point.items()) or "as written"


def slug(name: str) -> str:
    """Write a name as part of a path; names that look alike keep apart.

    Example:
        >>> slug("on-policy KD"), slug("β = 1")
        ('on-policy-KD', '1-f4145f42')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:_LONGEST]
    told_apart = plain == name.replace(" ", "-")
    return plain if told_apart else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def _place(stage: str) -> str:
    return f"{{{stage}}}"


def _short(value: float) -> str:
    """Return a number with six digits if those are exact, else with all, so that no two points share a label."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"A study's `config` expected a file of settings, got `{file}`: {error.strerror}.") from error
