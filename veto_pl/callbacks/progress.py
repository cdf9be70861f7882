"""One progress line: what the run is doing now, how fast, and how long it will take."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from veto_pl.core.mistakes import check_number
from veto_pl.training.clock import PhaseClock

SHOWN = {
    "train/loss": "loss",
    "train/kl": "kl",
    "validation/accuracy": "accuracy",
    "train/tokens_per_second": "tokens/s",
}


class DistillationProgress(ProgressBar):
    """Steps, phase (rollout, scoring, update), loss, tokens per second and time left.

    On a terminal it is one live line; elsewhere, such as in a log file, a plain line now and then.

    Args:
        lines: plain lines per run where there is no terminal; 0 for none.

    Raises:
        ConfigurationError: `lines` is negative.
    """

    def __init__(self, lines: int = 10) -> None:
        super().__init__()
        check_number("DistillationProgress.lines", lines, 0)
        self.lines = lines
        self._enabled = True
        self._console = Console()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def disable(self) -> None:
        """Shows nothing from now on; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undoes `disable`."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the live line."""
        if self._enabled:
            self._console.print(*args, **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the line for the whole run."""
        self._open("train", int(trainer.estimated_stepping_batches), pl_module, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Moves on to the step just done."""
        self._advance("train", trainer.global_step, _shown(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closes everything."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the terminal back."""
        self._stop()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens a line for the validation."""
        self._open("validate", sum(map(int, trainer.num_val_batches)), pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Moves on by one batch."""
        self._advance("validate")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closes the validation's line."""
        self._close("validate")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens a line for the test."""
        self._open("test", sum(map(int, trainer.num_test_batches)), pl_module)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Moves on by one batch."""
        self._advance("test")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closes the test's line."""
        self._close("test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens a line for the prediction."""
        self._open("predict", sum(map(int, trainer.num_predict_batches)), pl_module)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Moves on by one batch."""
        self._advance("predict")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closes the prediction's line."""
        self._close("predict")

    def _open(self, name: str, total: int, pl_module: L.LightningModule, completed: int = 0) -> None:
        if not self._enabled:
            return
        if self._progress is None:
            self._progress = _progress(pl_module.clock, self._console)  # type: ignore[arg-type]
            if self._console.is_terminal:
                self._progress.start()
        self._tasks[name] = self._progress.add_task(name, total=total, completed=completed, shown="")

    def _advance(self, name: str, completed: int | None = None, shown: str = "") -> None:
        if self._progress is None or name not in self._tasks:
            return
        identity = self._tasks[name]
        task = self._progress.tasks[self._progress.task_ids.index(identity)]
        before = task.completed
        target = before + 1 if completed is None else completed
        self._progress.update(identity, completed=target, shown=shown)
        if not self._console.is_terminal and name == "train" and task.total and self.lines:
            every = max(1, int(task.total) // self.lines)
            if target > before and (target % every == 0 or target == task.total):
                self._console.print(f"step {target:g}/{task.total:g}  {shown}", highlight=False)

    def _close(self, name: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
            if not self._tasks:
                self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks = {}


class _PhaseColumn(ProgressColumn):
    """What the run is doing at this moment."""

    def __init__(self, clock: PhaseClock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        return Text(f"{self._clock.phase:<10}", style="cyan")


def _progress(clock: PhaseClock, console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _PhaseColumn(clock),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )


def _shown(trainer: L.Trainer) -> str:
    metrics = trainer.callback_metrics
    return "  ".join(f"{label} {float(metrics[name]):.4g}" for name, label in SHOWN.items() if name in metrics)
