"""The record of a run: its summary, the rows that could not be trained on, and a warning about lost probability."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from veto_pl.callbacks.guards import Guards
from veto_pl.core.mistakes import check_number
from veto_pl.storage.atomic import replacing
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.journals import Journal
from veto_pl.storage.waiting_lines import WaitingLines
from veto_pl.training.nonfinite import FAULTS, faults_file


class Diagnostics(L.Callback, Journal):
    """Writes `summary.json` into the run folder, also where the run ends early: then it has the reason.

    It warns, once, when padding rows of the vocabulary hold more than `discarded_mass` of the student's probability.

    Args:
        discarded_mass: probability above which the warning is given; 1 for never.

    Raises:
        ConfigurationError: `discarded_mass` is no probability.
    """

    journal = FAULTS

    def __init__(self, discarded_mass: float = 0.01) -> None:
        check_number("Diagnostics.discarded_mass", discarded_mass, 0, 1)
        self.discarded_mass = discarded_mass
        self._faults: WaitingLines | None = None
        self._started: float | None = None
        self._step = 0
        self._skipped = 0
        self._has_warned = False
        self._by_choice = False
        self._earlier: set[str] = set()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the file of faults. Collective: call it on every rank."""
        self._faults = faults_file(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the time and the step at which the run starts."""
        self._started = time.perf_counter()
        self._step = trainer.global_step
        self._by_choice = False
        self._earlier = set(_reasons(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Count skipped steps, and warn once if padding rows hold more than `discarded_mass` of the probability."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        logged: dict[str, float] = getattr(pl_module, "logged", {})
        self._skipped += int(logged.get("train/skipped", 0))
        discarded = max((v for name, v in logged.items() if name.endswith("/discarded_mass")), default=0.0)
        if discarded > self.discarded_mass and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"Step {self._step}: {discarded:.1%} of the student's probability lies on ids without a token: its "
                "head has more ids than the tokenizer. Give new weights (`RandomWeights`) the tokenizer's number as "
                "`vocab_size`; other students give this probability back as they train."
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the summary; what has ended the run early is logged too, where nobody has said so yet."""
        guards = (c.stopped for c in trainer.callbacks if isinstance(c, Guards))  # type: ignore[attr-defined]
        stopped = next(filter(None, guards), None)
        new = [reason for reason in _reasons(trainer) if reason not in self._earlier]
        if stopped is None and trainer.should_stop and new:
            stopped, self._by_choice = f"step {trainer.global_step}: {new[0]}", True
            rank_zero_info(f"Stopped early, at {stopped}")
        self._write(trainer, stopped)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the summary of a run that ends with an exception."""
        self._write(trainer, f"{type(exception).__name__}: {exception}")

    def state_dict(self) -> dict[str, Any]:
        """Return the number of optimizer steps skipped so far."""
        return {"skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of optimizer steps skipped so far."""
        self._skipped = state_dict["skipped"]

    def position(self) -> int:
        """Return the number of rows of faults so far."""
        return 0 if self._faults is None else self._faults.position()

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        """Keep only the first `rows` rows of faults. Collective: call it on every rank."""
        self._faults = faults_file(trainer)  # a run that starts afresh cuts before the setup
        if trainer.is_global_zero:
            self._faults.cut(rows)

    def bring_to_disk(self) -> None:
        """Wait until the faults are on the disk."""
        if self._faults is not None:
            self._faults.bring_to_disk()

    @rank_zero_only
    def _write(self, trainer: L.Trainer, stopped: str | None) -> None:
        if self._faults is None or self._started is None:
            return
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "/" in name}
        summary = {
            "steps": trainer.global_step,
            "seconds": round(time.perf_counter() - self._started, 1),
            "skipped_steps": self._skipped,
            **({} if stopped is None else {"stopped": stopped}),
            **({"stopped_by_choice": True} if self._by_choice else {}),
            **{
                name: round(value, 6) if math.isfinite(value) else None for name, value in values.items() if "/" in name
            },
        }
        path = self._faults.path.with_name("summary.json")
        with warn_if_unwritten(path, "has no summary"), replacing(path) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _reasons(trainer: L.Trainer) -> list[str]:
    """Return why callbacks such as Lightning's `EarlyStopping` have ended a run: this one, or that before a resume."""
    told = (getattr(callback, "stopping_reason_message", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return [str(reason).removesuffix(" Signaling Trainer to stop.") for reason in told if reason]
