"""Sample completions of every validation, as a file and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from veto_pl.evaluation import Evaluation
from veto_pl.report.run import SAMPLES


class SampleTable(L.Callback):
    """Appends the first completions of each validation to `samples.jsonl` in the run folder, and prints them.

    Args:
        number: completions kept per validation; 0 switches the callback off.
        show: whether they are also printed.
        width: characters of a text that are printed; the file holds all of them.
    """

    def __init__(self, number: int = 8, show: bool = True, width: int = 200) -> None:
        self.number = number
        self.show = show
        self.width = width
        self._rows: list[dict[str, Any]] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the samples of the validation before."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keeps rows until there are enough."""
        missing = self.number - len(self._rows)
        if missing > 0 and trainer.is_global_zero and outputs is not None:
            evaluation: Evaluation = outputs["evaluation"]
            self._rows += evaluation.rows()[:missing]

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes and prints what was kept."""
        if not self._rows:
            return
        if trainer.log_dir is not None:
            path = Path(trainer.log_dir) / SAMPLES
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": trainer.global_step, **row}) + "\n" for row in self._rows)
        if self.show:
            Console().print(self._table(trainer.global_step))

    def _table(self, step: int) -> Table:
        table = Table("prompt", "completion", "reference", "reward", title=f"samples at step {step}")
        for row in self._rows:
            texts = (str(row[name] or "") for name in ("prompt", "completion", "reference"))
            table.add_row(*(_plain(text, self.width) for text in texts), f"{row['reward']:g}")
        return table


def _plain(text: str, width: int) -> str:
    """Cut, and safe from being read as rich's mark-up."""
    cut = text if len(text) <= width else text[: width - 1] + "…"
    return cut.replace("[", r"\[")
