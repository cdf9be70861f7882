"""A training run as its folder tells it: metrics, samples and configuration."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from veto_pl.exceptions import DataError
from veto_pl.report.curve import Curve
from veto_pl.storage.run_folder import CONFIG, METRICS, SAMPLES

_COUNTERS = ("step", "epoch")


@dataclass(frozen=True)
class Sample:
    """A completion that the student wrote.

    Args:
        step: optimizer steps done when it wrote it.
        prompt: what it read.
        completion: what it wrote.
        reference: the expected completion, if there is one.
        reward: the task's score; 1 is right.
    """

    step: int
    prompt: str
    completion: str
    reference: str | None
    reward: float

    @property
    def is_correct(self) -> bool:
        """Whether the task gave full reward."""
        return self.reward >= 1


@dataclass(frozen=True)
class Run:
    """A run's folder, read when asked for; a file that is not there counts as empty.

    Args:
        name: how the report calls the run.
        folder: holds `metrics.csv`, `samples.jsonl` and `config.yaml`.
    """

    name: str
    folder: Path

    @classmethod
    def read(cls, folder: Path | str, name: str | None = None) -> Run:
        """Reads a folder now, so that errors show here; the folder's own name is the default name.

        Raises:
            DataError: if there is no such folder, or a line of a file cannot be read; names file and line.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"`Run.read` needs the folder of a run, got {str(folder)!r}, which is not a folder.")
        run = cls(folder.resolve().name if name is None else name, folder)
        _ = run.curves(), run.samples, run.config
        return run

    def curves(self) -> dict[str, Curve]:
        """Column -> curve. A step that was logged twice (a resumed run) keeps its last value."""
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
    def samples(self) -> tuple[Sample, ...]:
        """Every sample, in the order of the file."""
        path = self.folder / SAMPLES
        # Not `splitlines`: JSON strings may hold other line separators unescaped.
        lines = enumerate(_text(path).split("\n"), start=1)
        return tuple(_sample(line, f"{path}:{number}") for number, line in lines if line.strip())

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
        """Returns the run itself; raises `DataError` where its folder holds nothing of a run."""
        if self.missing(METRICS) and self.missing(SAMPLES):
            raise DataError(
                f"{self.folder}: expected the folder of a run, with `{METRICS}` or `{SAMPLES}`, got neither."
            )
        return self

    def missing(self, file: str) -> bool:
        """Whether the folder lacks a file."""
        return not (self.folder / file).is_file()


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
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if header is None:
                header = _header(cells, where)
            elif cells:
                yield _metric_row(header, cells, where)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: expected comma-separated values, got {error}.") from error


def _header(cells: list[str], where: str) -> list[str]:
    if "step" not in cells or len(set(cells)) < len(cells):
        raise DataError(f"{where}: expected a header of distinct names with the column `step`, got {cells}.")
    return cells


def _metric_row(header: list[str], cells: list[str], where: str) -> tuple[int, dict[str, float]]:
    if len(cells) != len(header):
        raise DataError(f"{where}: expected {len(header)} cells as in the header, got {len(cells)}.")
    row = dict(zip(header, cells, strict=True))
    try:
        step = int(row["step"])
    except ValueError as error:
        raise DataError(f"{where}: `step` must be a whole number, got {row['step']!r}.") from error
    logged = {column: cell for column, cell in row.items() if cell.strip() and column not in _COUNTERS}
    return step, {column: _number(cell, column, where) for column, cell in logged.items()}


def _number(cell: str, column: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise DataError(f"{where}: `{column}` must be a number or empty, got {cell!r}.") from error


_FIELDS: Mapping[str, tuple[type, ...]] = {
    "step": (int,),
    "prompt": (str,),
    "completion": (str,),
    "reference": (str, type(None)),
    "reward": (int, float),
}


def _sample(line: str, where: str) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: expected one JSON object, got {error}.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {line[:80]!r}.")
    fields: dict[str, Any] = {name: row.get(name) for name in _FIELDS}
    for name, kinds in _FIELDS.items():
        value = fields[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise DataError(f"{where}: `{name}` must be {expected}, got {value!r}.")
    return Sample(**fields)
