"""What deserves a look while a run goes on, and its summary afterwards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor


class Diagnostics(L.Callback):
    """Warns, once each, about what usually means a mistake, and writes `summary.json` into the run folder.

    It warns when no completion token was trained on, when padding rows of the vocabulary hold more than
    `discarded_mass` of the student's probability, and when the gradient is not finite.

    Args:
        discarded_mass: probability above which the warning is given.
    """

    def __init__(self, discarded_mass: float = 0.01) -> None:
        self.discarded_mass = discarded_mass
        self._warned: set[str] = set()
        self._started = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Looks at what the step logged."""
        metrics = trainer.callback_metrics
        step = trainer.global_step
        if float(metrics.get("train/completion_length", 1.0)) == 0.0:
            self._warn("empty", f"Step {step} trained on no completion token: every completion of the batch is empty.")
        discarded = float(metrics.get("train/discarded_mass", 0.0))
        if discarded > self.discarded_mass:
            self._warn(
                "mass", f"Step {step}: {discarded:.1%} of the student's probability lies on ids without a token."
            )
        if not torch.isfinite(torch.as_tensor(metrics.get("train/grad_norm", 0.0))):
            self._warn(
                "gradient", f"Step {step}: the gradient is not finite. Lower the learning rate or clip gradients."
            )

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the summary."""
        if trainer.log_dir is None:
            return
        summary = {
            "steps": trainer.global_step,
            "seconds": round(time.perf_counter() - self._started, 1),
            **{name: round(_number(value), 6) for name, value in sorted(trainer.callback_metrics.items())},
        }
        path = Path(trainer.log_dir) / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(message)


def _number(value: Tensor | float) -> float:
    return float(value)
