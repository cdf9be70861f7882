"""The answers of `predict`, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.run_folder import run_folder
from veto_pl.storage.waiting_lines import WaitingLines


class PredictionFile(BasePredictionWriter):
    """Writes prompt, completion, reference and reward of every answer into `predictions.jsonl` in the run folder.

    On several ranks each writes a file of its own, `predictions-1.jsonl` and so on.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._lines = WaitingLines(Path("predictions.jsonl"))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Create an empty file for this rank."""
        self._lines = WaitingLines(self._path(trainer))
        with warn_if_unwritten(self._lines.path):
            self._lines.path.parent.mkdir(parents=True, exist_ok=True)
            self._lines.path.write_text("")

    def write_on_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, *args: Any) -> None:
        """Append the rows of one batch."""
        self._lines.add(prediction)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the rows that are left and log the file's path; raise `DataError` if rows could not be written."""
        self._lines.finish()
        others = f" and its neighbours of {trainer.world_size - 1} other ranks" if trainer.world_size > 1 else ""
        rank_zero_info(f"Wrote the predictions to {self._lines.path}{others}")

    def _path(self, trainer: L.Trainer) -> Path:
        name = "predictions.jsonl" if trainer.is_global_zero else f"predictions-{trainer.global_rank}.jsonl"
        return run_folder(trainer) / name
