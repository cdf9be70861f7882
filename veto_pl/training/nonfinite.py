"""Steps whose loss or gradient is not finite: they are skipped, and the rows that caused them are written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from veto_pl.exceptions import ConfigurationError, NonFiniteError
from veto_pl.storage.run_folder import run_folder
from veto_pl.storage.waiting_lines import WaitingLines, shared_lines

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

FAULTS = "faults.jsonl"
RowReports = Callable[[], list[dict[str, Any]]]
"""Says what the rows of a micro-batch were: `row`, `not_finite` and what describes each. It is asked only if needed."""
SHOWN_ROWS, SHOWN_CHARACTERS, SHOWN_STEPS = 3, 80, 10
SHOWN_TEXTS = ("prompt", "completion")


class NonFiniteSteps:
    """Decides, alike on all ranks, whether an optimizer step is skipped.

    A step is left out where a loss of its window, or the norm of its gradient, is NaN or infinite. Both are sums over
    all ranks, so no rank has to ask the others. The optimizer then gets no gradients: weights, moments and momentum
    stay as they are to the bit. Step count and schedules move on.

    Where a gradient scaler looks for its scale (16-mixed precision), an infinite gradient under finite losses is its
    doing and no fault: it leaves the step out too, but does not count as long as the scale is above 1.

    Args:
        limit: steps left out in a row after which the run stops.

    Raises:
        ConfigurationError: `limit` is below 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(
                f"`model.skip_limit` must be at least 1, got {limit}. It is the number of steps in a row that may have "
                "a loss or gradient that is not finite."
            )
        self.limit = limit
        self.in_a_row = 0
        self._reported = 0
        self._lines: WaitingLines | None = None
        self._kept_rows: list[RowReports] = []

    def begin(self, trainer: Trainer, parameters: Sequence[nn.Parameter]) -> None:
        """Begin a fit.

        Args:
            trainer: runs it.
            parameters: those that are trained.
        """
        self._run = trainer, parameters

    def keep_rows(self, reports: RowReports) -> None:
        """Keep what says which rows a micro-batch had until the step is decided."""
        self._kept_rows.append(reports)

    def skip_if_not_finite(self, optimizer: Optimizer, means: Mapping[str, float], norm: float) -> bool:
        """Return whether the step is skipped; if so, drop its gradients and report its rows.

        Args:
            optimizer: about to step.
            means: what the window logs, over all ranks.
            norm: of the gradient, over all ranks.

        Raises:
            NonFiniteError: it is the last step in a row that may be left out. All ranks raise it.
        """
        kept_rows, self._kept_rows = self._kept_rows, []
        losses = {name: value for name, value in means.items() if name.rpartition("/")[2] == "loss"}
        broken = [name for name, value in {**losses, "gradient": norm}.items() if not math.isfinite(value)]
        if self._lines is not None:
            self._lines.flush()
        if not broken:
            self.in_a_row = 0
            return False
        trainer, parameters = self._run
        _drop_gradients(parameters, optimizer, scaled=_scale(trainer) is not None)
        if broken == ["gradient"] and (_scale(trainer) or 0.0) > 1:
            return True
        self.in_a_row += 1
        rows = [row for reports in kept_rows for row in reports()]
        self._report(trainer, broken, _gather_rows(rows, trainer))
        if self.in_a_row == self.limit:
            self.in_a_row = 0  # a run that is resumed has all its steps again
            raise NonFiniteError(self._stop_message(trainer))
        return True

    def _report(self, trainer: Trainer, broken: list[str], rows: list[dict[str, Any]]) -> None:
        """Append the rows to the file, and warn about the first few."""
        guilty = [row for row in rows if row["not_finite"]]
        self._lines = faults_file(trainer)
        if trainer.is_global_zero:
            self._lines.add({"step": trainer.global_step + 1, **row} for row in guilty or rows)
        self._reported += 1
        if self._reported > SHOWN_STEPS:
            return
        cause = f"{len(guilty)} of its {len(rows)} rows caused it: {'; '.join(map(_row_summary, guilty[:SHOWN_ROWS]))}."
        if not guilty:
            cause = f"All its {len(rows)} rows are finite at the head, so a number overflowed inside the model."
        more = f" From now on only {FAULTS} tells." if self._reported == SHOWN_STEPS else ""
        rank_zero_warn(
            f"Step {trainer.global_step + 1} was left out, since its {' and '.join(broken)} is not finite. {cause} The "
            f"weights stay as they were. Rows: {self._lines.path}.{more}"
        )

    def _stop_message(self, trainer: Trainer) -> str:
        """Return the message of the error that stops the run."""
        return (
            f"The run stops at step {trainer.global_step}: {self.limit} steps in a row had a loss or gradient that is "
            f"not finite. The weights are intact; they are those before these steps. {faults_file(trainer).path} has "
            "the rows. If they are always the same rows, correct or remove them; if they are all rows, lower the "
            "learning rate, or set `trainer.precision` to `bf16-mixed` or `32`. To go on regardless, raise "
            "`model.skip_limit`."
        )


def faults_file(trainer: Trainer) -> WaitingLines:
    """Return the file of the rows of a run, one object for all who write or count them. Collective: call it on every
    rank.
    """
    return shared_lines(run_folder(trainer) / FAULTS)


def _drop_gradients(parameters: Iterable[nn.Parameter], optimizer: Optimizer, *, scaled: bool) -> None:
    """Remove the gradients, since optimizers pass over parameters without one.

    A fused optimizer under a gradient scaler has to be handed gradients that are not finite instead: the scaler looks
    for them only when it steps, and leaves the step out itself.
    """
    # PyTorch's own mark, also private there, of optimizers that take the scale themselves.
    unseen = scaled and getattr(optimizer, "_step_supports_amp_scaling", False)
    for parameter in parameters:
        if not unseen:
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.fill_(math.nan)


def _scale(trainer: Trainer) -> float | None:
    """Return the present scale of the losses; None without a gradient scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())


def _gather_rows(rows: list[dict[str, Any]], trainer: Trainer) -> list[dict[str, Any]]:
    """Gather the rows of all ranks, with the rank of each. Collective: call it on every rank."""
    parts: list[list[dict[str, Any]] | None] = [rows]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        dist.all_gather_object(parts, rows)
    return [{"rank": rank, **row} for rank, part in enumerate(parts) for row in part or []]


def _row_summary(row: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {_shorten(row[name])!r}" for name in SHOWN_TEXTS if name in row)
    return f"row {row['row']} on rank {row['rank']} ({' and '.join(row['not_finite'])}), {shown}"


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
