"""What a run is doing now, how fast, and how long it will take: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import BatchesProcessedColumn
from rich import get_console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from veto_pl.core.mistakes import check_number
from veto_pl.training.clock import PhaseClock

SHOWN = {
    "train/loss": "loss",
    "train/kl": "kl",
    "validation/accuracy": "accuracy",
    "train/tokens_per_second": "tokens/s",
}


class DistillationProgress(RichProgressBar):
    """Steps, phase (rollout, scoring, update), loss, tokens per second and time left.

    On a terminal it is one live line; elsewhere, such as in a log file, a plain line now and then.

    Args:
        lines: plain lines per run where there is no terminal; 0 for none.

    Raises:
        ConfigurationError: `lines` is negative.
    """

    def __init__(self, lines: int = 10) -> None:
        super().__init__(refresh_rate=4)
        check_number("DistillationProgress.lines", lines, 0)
        self.lines = lines
        self._step = 0
        self._printed = ""

    @property
    def is_enabled(self) -> bool:
        """Whether there is a bar."""
        return super().is_enabled and get_console().is_terminal

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Return the columns of the bar; Lightning adds those of `get_metrics` behind them."""
        return [
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            BatchesProcessedColumn(style=""),
            _PhaseColumn(trainer.lightning_module.clock),  # type: ignore[arg-type]
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return a few of the numbers that are logged, by short names."""
        metrics = trainer.callback_metrics
        return {label: f"{float(metrics[name]):.4g}" for name, label in SHOWN.items() if name in metrics}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open one bar for the optimizer steps of the whole run."""
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        if self.progress is not None:
            total = trainer.estimated_stepping_batches
            self.train_progress_bar_id = self.progress.add_task("train", total=total, completed=self._step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing, since one bar serves all epochs."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar to the step just done, or print a plain line where there is no terminal."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)
        before, self._step = self._step, trainer.global_step
        total = trainer.estimated_stepping_batches
        if not super().is_enabled or get_console().is_terminal or not self.lines or self._step == before:
            return
        every = max(1, int(total) // self.lines) if total < float("inf") else 100
        if self._step % every == 0 or self._step == total:
            self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar, or print what the last validation has found, which comes behind the last plain line."""
        super().on_train_end(trainer, pl_module)
        if self._printed and self._line(trainer, pl_module) != self._printed:
            self._print_line(trainer, pl_module)

    def _print_line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._printed = self._line(trainer, pl_module)
        print(self._printed, flush=True)

    def _line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        shown = "  ".join(f"{label} {value}" for label, value in self.get_metrics(trainer, pl_module).items())
        return f"step {self._step}/{trainer.estimated_stepping_batches:g}  {shown}"


class _PhaseColumn(ProgressColumn):
    """What the run is doing at this moment."""

    def __init__(self, clock: PhaseClock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        return Text(f"{self._clock.phase:<10}", style="cyan")
