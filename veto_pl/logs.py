"""What a run writes row by row, and how it goes on after a stop."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from veto_pl.checkpoint_io import append, beside, bring_to_disk
from veto_pl.report.run import METRICS


class Journal(ABC):
    """A record that grows by rows. A checkpoint keeps how many there were, and a resumed run forgets those after it.

    Loggers and callbacks can be journals. The methods are called on all ranks; only the first one writes.
    """

    journal: str
    """What its rows are called in a checkpoint."""

    @abstractmethod
    def position(self) -> int:
        """Rows written so far."""

    @abstractmethod
    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        """Keeps the first `rows` rows, which are those before `step`; no rows for a run that starts afresh."""

    @abstractmethod
    def bring_to_disk(self) -> None:
        """Waits until all rows are on the disk."""


def journals(trainer: L.Trainer) -> list[Journal]:
    """All journals among the loggers and callbacks of a trainer."""
    parts = (*trainer.loggers, *trainer.callbacks)  # type: ignore[attr-defined]
    return [part for part in parts if isinstance(part, Journal)]


def _is_first_rank() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


class MetricsFile(CSVLogger, Journal):
    """Writes `metrics.csv` as `CSVLogger` does, and goes on with the file that is there instead of deleting it.

    Args:
        folder: the folder of the run.
    """

    journal = METRICS

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")

    @property
    def experiment(self) -> Any:
        """The writer of the file; a dummy on all ranks but the first."""
        if self._experiment is None and _is_first_rank():
            self._experiment = _Rows(self.log_dir)
        return super().experiment

    def position(self) -> int:
        return cast(_Rows, self.experiment).rows if _is_first_rank() else 0

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        if _is_first_rank():
            cast(_Rows, self.experiment).cut(rows)

    def bring_to_disk(self) -> None:
        self.save()
        if _is_first_rank():
            bring_to_disk(Path(self.experiment.metrics_file_path))


class _Rows(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._has_warned = False
        header, rows, whole = _table(Path(self.metrics_file_path))
        self.metrics_keys, self.rows = header, len(rows)
        if not whole:
            self._rewrite(header, rows)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, self.rows if step is None else step)
        self.rows += 1

    def save(self) -> None:
        """Writes what was logged since the last time; what a full disk refuses is kept for the next time."""
        keys = list(self.metrics_keys)
        path = Path(self.metrics_file_path)
        try:
            if self.metrics and (self._record_new_keys() or not path.is_file()):
                self._rewrite(self.metrics_keys, [*_table(path)[1], *self.metrics])
            elif self.metrics:
                append(path, _lines(self.metrics_keys, self.metrics))
            self.metrics = []
        except OSError as error:
            self.metrics_keys = keys
            if not self._has_warned:
                rank_zero_warn(f"{path} could not be written: {error}. The run goes on, and tries again.")
            self._has_warned = True

    def cut(self, count: int) -> None:
        self.metrics = []
        header, rows, _ = _table(Path(self.metrics_file_path))
        if len(rows) < count:
            rank_zero_warn(f"{self.metrics_file_path} has {len(rows)} rows, but had {count} when the run was stopped.")
        kept = rows[:count]
        self.metrics_keys, self.rows = [name for name in header if any(row.get(name) for row in kept)], len(kept)
        if kept:
            self._rewrite(self.metrics_keys, kept)
        else:
            Path(self.metrics_file_path).unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Nothing is deleted."""

    def _rewrite(self, header: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        with beside(Path(self.metrics_file_path)) as temporary:
            temporary.write_bytes(_lines(header, [dict(zip(header, header, strict=True)), *rows]))


def _lines(header: list[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, header, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()


def _table(path: Path) -> tuple[list[str], list[dict[str, str]], bool]:
    """The header and the rows of a file up to the first that a killed process left half written; and if that is all."""
    lines = (
        path.read_bytes().decode(errors="replace").replace("\0", "").splitlines(keepends=True) if path.is_file() else []
    )
    cells = list(csv.reader(line for line in lines if line.endswith("\n")))
    header, rows = (cells[0] if cells else []), []
    for row in cells[1:]:
        if len(row) != len(header):
            break
        rows.append(dict(zip(header, row, strict=True)))
    return header, rows, len(rows) == max(len(lines) - 1, 0)


class Events(TensorBoardLogger, Journal):
    """Writes TensorBoard's files; a resumed run hides the points of the steps that it does again.

    Args:
        folder: the folder of the run; the files are in `tensorboard`.
    """

    journal = "tensorboard"

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="tensorboard")

    def position(self) -> int:
        return 0

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        if self._experiment is not None:
            self._experiment.close()
        self._experiment = None
        self._kwargs["purge_step"] = step

    def bring_to_disk(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()
