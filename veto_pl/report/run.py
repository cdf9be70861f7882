"""A training run as its folder tells it: metrics, samples and configuration."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from veto_pl.charts.curve import Curve
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.report.columns import Shown
from veto_pl.report.pictures import Picture, read_picture
from veto_pl.seams.playing import Line, opening_of, spoken_in
from veto_pl.storage.run_folder import CONFIG, METRICS, PICTURES, QUANTITIES, SAMPLES, STEP

T = TypeVar("T")
Thumbnail = Annotated[str, StringConstraints(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+=*$")]
_COUNTERS = ("step", "epoch")
_DESCRIBED = TypeAdapter(dict[str, Shown])


class Sample(BaseModel):
    """A completion that the student wrote.

    Args:
        step: optimizer steps done when it wrote it.
        prompt: what it read.
        completion: what it wrote.
        reference: the expected completion, if there is one.
        reward: the task's score; 1 is right.
        dialogue: what was said in an episode with an environment; empty for a single answer.
        thumbnails: small copies of the prompt's images, as `data:` addresses.
        said: by teacher, what it has said of the row, one note for each turn.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    step: int
    prompt: str
    completion: str
    reference: str | None = None
    reward: float
    dialogue: tuple[Line, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    said: dict[str, tuple[dict[str, Any], ...]] = {}

    @property
    def opening(self) -> tuple[Line, ...]:
        """What was said before the student's first turn; it belongs to the question."""
        return opening_of(self.dialogue)

    @property
    def spoken(self) -> tuple[Line, ...]:
        """The student's turns and the replies."""
        return spoken_in(self.dialogue)

    @property
    def is_correct(self) -> bool:
        """Whether the task gave full reward."""
        return self.reward >= 1


@dataclass(frozen=True)
class Run:
    """A run's folder, read when asked for; a file that is not there counts as empty.

    Args:
        name: how the report calls the run.
        folder: holds `metrics.csv`, `quantities.json`, `config.yaml`, and `samples.jsonl` or pictures in `samples`.
    """

    name: str
    folder: Path

    @classmethod
    def read(cls, folder: Path | str, name: str | None = None) -> Run:
        """Read a folder now, so that errors show here; the folder's own name is the default name.

        Raises:
            DataError: if there is no such folder, or a line of a file cannot be read; names file and line.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"`Run.read` needs the folder of a run, got {str(folder)!r}, which is not a folder.")
        run = cls(folder.resolve().name if name is None else name, folder)
        _ = run.curves(), run.samples, run.pictures, run.config, run.shown
        return run

    def curves(self) -> dict[str, Curve]:
        """Return column -> curve. A step that was logged twice (a resumed run) keeps its last value."""
        return dict(self._curves)

    @cached_property
    def _curves(self) -> Mapping[str, Curve]:
        logged: dict[str, dict[int, float]] = {}
        for step, values in _metric_rows(self.folder / METRICS):
            for column, value in values.items():
                logged.setdefault(column, {})[step] = value
        ordered = {column: sorted(points.items()) for column, points in logged.items()}
        return {name: Curve(tuple(s for s, _ in rows), tuple(v for _, v in rows)) for name, rows in ordered.items()}

    @cached_property
    def shown(self) -> Mapping[str, Shown]:
        """Metric -> how it is shown, in the order of the run's metrics; empty for a run that did not say."""
        path = self.folder / QUANTITIES
        text = _text(path)
        try:
            return _DESCRIBED.validate_json(text) if text else {}
        except ValidationError as error:
            raise DataError(f"{path}: {_first(error)}") from error

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """Every sample, in the order of the file."""
        path = self.folder / SAMPLES
        # Not `splitlines`: JSON strings may hold other line separators unescaped.
        lines = enumerate(_text(path).split("\n"), start=1)
        return tuple(_sample(line, f"{path}:{number}") for number, line in lines if line.strip())

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """What was sampled, step by step, behind the images that it should look like; nothing for texts."""
        folder = self.folder / PICTURES
        steps = sorted(folder.glob(f"{STEP}*.png"))
        targets = [read_picture(path, "targets") for path in [folder / "targets.png"] if path.is_file()]
        return (*targets, *(read_picture(path, _step_title(path)) for path in steps))

    @cached_property
    def config(self) -> str:
        """The configuration as YAML text."""
        return _text(self.folder / CONFIG)

    @property
    def last_samples(self) -> tuple[Sample, ...]:
        """The samples of the last step that has any."""
        last = max((sample.step for sample in self.samples), default=0)
        return tuple(sample for sample in self.samples if sample.step == last)

    def check(self) -> Run:
        """Return the run itself; raise `DataError` where its folder holds nothing of a run."""
        if self.missing(METRICS) and self.missing(SAMPLES):
            raise DataError(
                f"{self.folder}: expected the folder of a run, with `{METRICS}` or `{SAMPLES}`, got neither."
            )
        return self

    def missing(self, file: str) -> bool:
        """Return whether the folder lacks a file."""
        return not (self.folder / file).is_file()


def named_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Run]:
    """Read the runs in folders, and check that each folder holds one.

    Args:
        folders: of the runs.
        names: one for each; by default the folders' names, with as much of their paths as tells them apart.

    Raises:
        ConfigurationError: not as many names as folders.
        DataError: a folder holds no run, or a file of it cannot be read.
    """
    if names is not None and len(names) != len(folders):
        raise ConfigurationError(
            f"`--names`: given {len(names)}, expected {len(folders)}, one for each run. `--names` takes all words up "
            "to the next option, so put it behind the runs."
        )
    found = [Run.read(folder, name) for folder, name in zip(folders, names or distinct_names(folders), strict=True)]
    return [run.check() for run in found]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, with as many of the folders around it as tell it from the others.

    Folders that are named twice have one name.

    >>> distinct_names([Path("/out/SFT/version_1"), Path("/out/KD/version_1"), Path("/out/plain")])
    ['SFT/version_1', 'KD/version_1', 'plain']
    """
    places = [folder.resolve().parts[1:] for folder in folders]
    lengths = [1] * len(places)
    while True:
        names = ["/".join(place[-length:]) for place, length in zip(places, lengths, strict=True)]
        by_name: dict[str, set[tuple[str, ...]]] = {}
        for name, place in zip(names, places, strict=True):
            by_name.setdefault(name, set()).add(place)
        shared = [
            len(by_name[name]) > 1 and length < len(place)
            for name, place, length in zip(names, places, lengths, strict=True)
        ]
        if not any(shared):
            return names
        lengths = [length + more for length, more in zip(lengths, shared, strict=True)]


def _step_title(path: Path) -> str:
    number = path.stem.removeprefix(STEP)
    return f"step {int(number):,}" if number.isdecimal() else path.stem


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: expected UTF-8 text, got the byte {data[error.start]:#04x}.") from error


def _metric_rows(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in lines:
            if header and cells:
                yield _metric_row(header, cells)
            elif cells:
                header = _header(cells)
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path}:{lines.line_num}: {error}") from error


def _header(cells: list[str]) -> list[str]:
    if "step" not in cells or len(set(cells)) < len(cells):
        raise ValueError(f"expected a header of distinct names with the column `step`, got {cells}.")
    return cells


def _metric_row(header: list[str], cells: list[str]) -> tuple[int, dict[str, float]]:
    if len(cells) != len(header):
        raise ValueError(f"expected {len(header)} cells as in the header, got {len(cells)}.")
    row = dict(zip(header, cells, strict=True))
    logged = {column: cell for column, cell in row.items() if cell.strip() and column not in _COUNTERS}
    step = _number(row["step"], "step", int, "a whole number")
    return step, {column: _number(cell, column, float, "a number or empty") for column, cell in logged.items()}


def _number(cell: str, column: str, kind: Callable[[str], T], expected: str) -> T:
    try:
        return kind(cell)
    except ValueError as error:
        raise ValueError(f"`{column}` must be {expected}, got {cell!r}.") from error


def _sample(line: str, where: str) -> Sample:
    try:
        return Sample.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{where}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    place = ".".join(map(str, found["loc"]))
    return f"{f'`{place}`: ' if place else ''}{found['msg']}, got {found['input']!r:.80}."
