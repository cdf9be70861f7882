"""What a run writes row by row, and how it goes on after a stop."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import nn

from veto_pl.core.extras import require_extra
from veto_pl.storage.atomic import append, bring_to_disk, replacing
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.run_folder import METRICS, QUANTITIES, is_first_rank


class Journal(ABC):
    """A record that grows by rows. A checkpoint keeps how many there were, and a resumed run forgets those after it.

    Loggers and callbacks can be journals. The methods are called on all ranks; only the first one writes.
    """

    journal: str
    """What its rows are called in a checkpoint."""

    @abstractmethod
    def position(self) -> int:
        """Return the number of rows written so far."""

    @abstractmethod
    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        """Keep the first `rows` rows, which are those before `step`; 0 for a run that starts afresh."""

    @abstractmethod
    def bring_to_disk(self) -> None:
        """Wait until all rows are on the disk."""


def journals(trainer: L.Trainer) -> list[Journal]:
    """Return all journals among the loggers and callbacks of a trainer."""
    parts = (*trainer.loggers, *trainer.callbacks)  # type: ignore[attr-defined]
    return [part for part in parts if isinstance(part, Journal)]


def positions(trainer: L.Trainer) -> dict[str, int]:
    """Return the number of rows of each journal so far, by its name."""
    return {journal.journal: journal.position() for journal in journals(trainer)}


class ContinuedCSV(CSVLogger, Journal):
    """Writes `metrics.csv` as `CSVLogger` does, and goes on with the file that is there instead of deleting it.

    A run may have several; `journal` then tells their files apart.
    """

    journal = METRICS

    @property
    def experiment(self) -> Any:
        """The writer of the file; a dummy on all ranks but the first."""
        if self._experiment is None and is_first_rank():
            self._experiment = _Rows(self.log_dir)
        return super().experiment

    @rank_zero_only
    def log_graph(self, model: nn.Module, *arguments: Any) -> None:
        """Write title, unit and direction of a module's metrics beside the file; Lightning calls it at the start."""
        path = Path(self.log_dir) / QUANTITIES
        with warn_if_unwritten(path), replacing(path) as temporary:
            temporary.write_text(json.dumps(described_quantities(model), indent=2) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: config.yaml of the run has the settings, where Lightning would write a second file."""

    def position(self) -> int:
        return cast(_Rows, self.experiment).rows if is_first_rank() else 0

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        if is_first_rank():
            cast(_Rows, self.experiment).cut(rows)

    def bring_to_disk(self) -> None:
        self.save()
        if is_first_rank():
            bring_to_disk(Path(self.experiment.metrics_file_path))


def described_quantities(module: Any) -> dict[str, dict[str, Any]]:
    """Return how the numbers of a module are shown: its `quantities`, or else those of `validation_metrics`."""
    return describe_metrics(getattr(module, "quantities", getattr(module, "validation_metrics", {})))


def describe_metrics(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return title, unit and direction of each metric, by its logged name, which is also the default title."""
    return {
        name: {
            "title": getattr(metric, "title", "") or name.replace("_", " "),
            "unit": getattr(metric, "unit", ""),
            "higher_is_better": getattr(metric, "higher_is_better", None),
        }
        for name, metric in metrics.items()
    }


class MetricsFile(ContinuedCSV):
    """Writes `metrics.csv` in one folder, and goes on with the file that is there.

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")


class _Rows(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        header, rows, whole = _read_csv(Path(self.metrics_file_path))
        self.metrics_keys, self.rows = header, len(rows)
        self._kept = None if whole else len(rows)
        self.save()

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, self.rows if step is None else step)
        self.rows += 1

    def save(self) -> None:
        """Write what was logged since the last time; rows that a full disk refuses are kept for the next time."""
        keys = list(self.metrics_keys)
        path = Path(self.metrics_file_path)
        with warn_if_unwritten(path):
            try:
                self._write(path)
            except OSError:
                self.metrics_keys = keys
                raise

    def _write(self, path: Path) -> None:
        """Append the waiting rows, or rewrite the file if there are new columns or rows to remove."""
        new = bool(self.metrics) and (bool(self._record_new_keys()) or not path.is_file())
        if new or self._kept is not None:
            self._rewrite(self.metrics_keys, [*_read_csv(path)[1][: self._kept], *self.metrics])
        elif self.metrics:
            append(path, _csv_bytes(self.metrics_keys, self.metrics))
        self.metrics, self._kept = [], None

    def cut(self, count: int) -> None:
        self.metrics = []
        header, rows, _ = _read_csv(Path(self.metrics_file_path))
        if len(rows) < count:
            rank_zero_warn(f"{self.metrics_file_path} has {len(rows)} rows, but had {count} when the run was stopped.")
        kept = rows[:count]
        self.metrics_keys, self.rows = [name for name in header if any(row.get(name) for row in kept)], len(kept)
        self._kept = len(kept)
        if kept:
            self.save()
            return
        with warn_if_unwritten(self.metrics_file_path):
            Path(self.metrics_file_path).unlink(missing_ok=True)
            self._kept = None

    def _check_log_dir_exists(self) -> None:
        """Do nothing, where Lightning would delete the file of an earlier run."""

    def _rewrite(self, header: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        with replacing(Path(self.metrics_file_path)) as temporary:
            temporary.write_bytes(_csv_bytes(header, [dict(zip(header, header, strict=True)), *rows]))


def _csv_bytes(header: list[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, header, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode()


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]], bool]:
    """Return the header of a file, its rows up to the first incomplete one, and whether those are all of it."""
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
        require_extra("tensorboard", extra="tensorboard", needed_by="`Events`")
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False)

    def position(self) -> int:
        return 0

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        self._close()
        self._kwargs["purge_step"] = step + 1 if step else 0  # the first one that is hidden

    def bring_to_disk(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers by TensorBoard's writer; on an `OSError`, close it, so that the next call opens a new one."""
        try:
            if self._experiment is None:
                _check_writable(Path(self.log_dir))
            super().log_metrics(metrics, step)
        except OSError:
            with suppress(OSError):
                self._close()
            raise

    def _close(self) -> None:
        experiment, self._experiment = self._experiment, None
        if experiment is not None:
            experiment.close()


def _check_writable(folder: Path) -> None:
    """Raise `OSError` if a folder cannot be written to, where TensorBoard would leave an empty file each time."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
