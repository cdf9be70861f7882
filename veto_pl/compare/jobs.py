"""The runs of a study: what each is called, what it is told, and what makes it out of date."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from veto_pl.compare.study import Method, Settings, Stage, Study
from veto_pl.exceptions import ConfigurationError, DataError

Point = Mapping[str, float]
"""Place of a setting -> its value."""
_LONGEST = 100  # characters of a folder's name; systems know no more than 255 bytes


@dataclass(frozen=True)
class Job:
    """One run: a training, and the evaluations of what it made.

    Args:
        name: for people.
        folder: where it writes.
        files: files of settings, in order.
        settings: behind the files.
        evaluations: name -> settings of `veto-pl test`, behind those of the training.
        needs: fingerprints of the runs that it starts from.
        starts: their folders.
        devices: processes that it trains on.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    settings: Settings
    evaluations: Mapping[str, Settings] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    starts: tuple[Path, ...] = ()
    devices: int = 1

    @property
    def fingerprint(self) -> str:
        """Changes where another run would come out; not where the same folders are only named otherwise."""
        texts = [_read(file) for file in self.files]
        places = {str(folder): need for folder, need in zip(self.starts, self.needs, strict=True)}
        told = [version("veto_pl"), texts, _replaced(self.settings, places), dict(self.evaluations), list(self.needs)]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Jobs:
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
        """The runs of a stage; one for every seed of the search and the comparison where it has one per seed."""
        return [self._stage(name, seed) for seed in self._seeds(self.study.stages[name])]

    def search(self, method: str, point: Point, seed: int) -> Job:
        """A run of the search. It never sees the test split."""
        return self._run(method, point, seed, self.folder / "search" / slug(method) / slug(point_text(point)))

    def trial(self, method: str, point: Point, seed: int) -> Job:
        """A run of the comparison, which is tested at the end."""
        tests = {name: self._test(sampling) for name, sampling in self.study.evaluations.items()}
        return self._run(method, point, seed, self.folder / "trials" / slug(method), tests)

    def _run(
        self, name: str, point: Point, seed: int, folder: Path, tests: Mapping[str, Settings] | None = None
    ) -> Job:
        method = self.study.methods[name]
        told = (self.study.student, method.settings, self.study.budget.settings, *map(nested, point.items()))
        title = ", ".join([name, *([point_text(point)] if point else []), f"seed {seed}"])
        job = self._job(title, method, seed, told, folder / f"seed-{seed}")
        return replace(job, evaluations=tests or {})

    def _stage(self, name: str, seed: int) -> Job:
        stage = self.study.stages[name]
        own = self._seed(name, seed)
        title = f"stage {name}, seed {own}" if stage.per_seed else f"stage {name}"
        job = self._job(title, stage, own, (stage.settings,), Path(), name)
        # Studies side by side share the stages that they tell the same.
        return replace(job, folder=self.folder.parent / "stages" / f"{slug(name)}-{job.fingerprint}")

    def _job(
        self, title: str, of: Stage | Method, seed: int, told: Sequence[Settings], folder: Path, before: str = ""
    ) -> Job:
        names = list(self.study.stages)
        settings = joined({"seed_everything": seed}, self.study.settings, *told)
        earlier = names[: names.index(before)] if before else names
        needed = {name: self._stage(name, seed) for name in earlier if f"{{{name}}}" in json.dumps(settings)}
        return Job(
            name=title,
            folder=folder,
            files=tuple((self.home / file).resolve() for file in (*self.study.config, *of.config)),
            settings=filled(settings, {name: stage.folder for name, stage in needed.items()}),
            needs=tuple(stage.fingerprint for stage in needed.values()),
            starts=tuple(stage.folder for stage in needed.values()),
            devices=self.study.devices,
        )

    def _seed(self, stage: str, seed: int) -> int:
        return seed if self.study.stages[stage].per_seed else 0

    def _seeds(self, stage: Stage) -> list[int]:
        if not stage.per_seed:
            return [0]
        return sorted({*self.study.seeds, *(self.study.search.seeds if self.study.searches else ())})

    def _test(self, sampling: Settings) -> Settings:
        shown = {"model": {"evaluation": sampling}, "answers": {"annotated": self.study.answers}}
        return joined(self.study.test, shown)


def joined(*parts: Settings) -> Settings:
    """Nested mappings laid over each other; the later one wins where both have a value.

    Example:
        >>> joined({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    result: Settings = {}
    for part in parts:
        for key, value in part.items():
            old = result.get(key)
            if isinstance(old, dict) and isinstance(value, dict) and not _is_another_class(old, value):
                value = joined(old, value)
            result[key] = value
    return result


def _is_another_class(old: Settings, new: Settings) -> bool:
    """A class that replaces another one inherits nothing from it."""
    return "class_path" in new and new["class_path"] != old.get("class_path")


def nested(setting: tuple[str, Any]) -> Settings:
    """A value at a place.

    Example:
        >>> nested(("model.optimizer.lr", 0.1))
        {'model': {'optimizer': {'lr': 0.1}}}
    """
    place, value = setting
    for key in reversed(place.split(".")):
        value = {key: value}
    return dict(value)


def filled(settings: Any, folders: Mapping[str, Path]) -> Any:
    """The settings with the folder of each stage in place of `{name}`; other braces stay."""
    return _replaced(settings, {f"{{{name}}}": str(folder) for name, folder in folders.items()})


def _replaced(settings: Any, words: Mapping[str, str]) -> Any:
    """The settings with other words in all strings."""
    if isinstance(settings, dict):
        return {key: _replaced(value, words) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [_replaced(value, words) for value in settings]
    if isinstance(settings, str):
        for word, other in words.items():
            settings = settings.replace(word, other)
    return settings


def point_text(point: Point) -> str:
    """A point of the grid for people: `lr 0.001`."""
    return ", ".join(f"{place.rpartition('.')[2]} {_short(value)}" for place, value in point.items()) or "as written"


def _short(value: float) -> str:
    """Six digits where they are the number, else all, so that two points never have one text."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def slug(name: str) -> str:
    """A name as part of a path; names that look alike keep apart.

    Example:
        >>> slug("on-policy KD"), slug("β = 1")
        ('on-policy-KD', '1-f4145f42')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:_LONGEST]
    told_apart = plain == name.replace(" ", "-")
    return plain if told_apart else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"A study's `config` expected a file of settings, got `{file}`: {error.strerror}.") from error
