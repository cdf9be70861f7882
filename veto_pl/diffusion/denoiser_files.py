"""What a run of a denoising student leaves in its folder: pictures, the numbers of a test, predictions, the export."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from veto_pl.core.mistakes import check_number
from veto_pl.diffusion.denoiser_export import check_export_folder
from veto_pl.diffusion.image_grid import bounds_of, picture
from veto_pl.storage.atomic import replacing
from veto_pl.storage.evaluation_file import write_test
from veto_pl.storage.going_on import data_error_if_unwritten, warn_if_unwritten
from veto_pl.storage.journals import Journal
from veto_pl.storage.paths import expand_home
from veto_pl.storage.run_folder import PICTURES, STEP, is_first_rank, run_folder


class DenoiserFiles(L.Callback, Journal):
    """Writes what the student samples, and the student itself when training ends.

    A validation draws `samples/step-N.png` and the images of the same rows, `samples/targets.png`; a test draws
    `samples/test.png` and `samples/test-targets.png`, and writes its metrics into `test.json`. The least number of the
    targets is black in all of them, and the largest white. A prediction writes `predictions.npz`: `samples` and the
    `numbers` of their rows; on several ranks each writes a file of its own, `predictions-1.npz` and so on.

    Args:
        folder: of the export, inside the run folder unless it is absolute; None writes none.
        pipeline: a folder or hub id of the pipeline that the student belongs to: the export is a whole one then.
        shown: images of a picture, the first rows of the first batch; 0 draws none.

    Raises:
        ConfigurationError: `shown` is negative.
    """

    journal = "pictures"

    def __init__(self, folder: str | None = "export", shown: int = 16, pipeline: str | None = None) -> None:
        check_number("DenoiserFiles.shown", shown, 0)
        self.folder = expand_home(folder)
        self.shown = shown
        self.pipeline = pipeline
        self._tested = 0
        self._predicted: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise `ConfigurationError` before the run if the export would replace other files."""
        if stage == "fit" and self.folder is not None:
            check_export_folder(run_folder(trainer) / self.folder)

    def position(self) -> int:
        """Return 0: a picture's own name tells its step."""
        return 0

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        """Remove the pictures of later steps. Collective: call it on every rank."""
        folder = run_folder(trainer) / PICTURES
        for path in folder.glob(f"{STEP}*.png") if is_first_rank() else ():
            if not step or int(path.stem.removeprefix(STEP)) > step:
                path.unlink()

    def bring_to_disk(self) -> None:
        """Do nothing: pictures are whole or not there."""

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Draw samples of the first batch. Collective: call it on every rank."""
        if batch_idx == 0:
            self._draw(trainer, pl_module, f"{STEP}{pl_module.steps_done:06}", "targets", outputs["samples"], batch)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self._tested = 0

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Do as in a validation, under the name of the test."""
        self._tested += len(outputs["samples"])
        if batch_idx == 0:
            self._draw(trainer, pl_module, "test", "test-targets", outputs["samples"], batch)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the metrics. Collective: call it on every rank."""
        folder = run_folder(trainer)
        count = trainer.strategy.reduce(torch.tensor(self._tested, device=pl_module.device), reduce_op="sum")
        if trainer.is_global_zero:
            with data_error_if_unwritten("The metrics of the test"):
                write_test(trainer, pl_module, folder, samples=int(count))

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep the samples of a batch."""
        numbers = batch.numbers.repeat_interleave(len(outputs) // len(batch))
        self._predicted.append((outputs.float().cpu(), numbers))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all samples. Collective: call it on every rank."""
        name = "predictions.npz" if trainer.is_global_zero else f"predictions-{trainer.global_rank}.npz"
        path, parts, self._predicted = run_folder(trainer) / name, self._predicted, []
        if parts:
            samples, numbers = (torch.cat(list(part)).numpy() for part in zip(*parts, strict=True))
            with data_error_if_unwritten("The predictions"), replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, samples=samples, numbers=numbers)
            rank_zero_info(f"Wrote the predictions to {path}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the student. Collective: call it on every rank."""
        if self.folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder(trainer) / self.folder
        with warn_if_unwritten(folder, "keeps the student in its checkpoints"):
            pl_module.export(folder, self.pipeline)  # type: ignore[operator]
            rank_zero_info(f"Exported the student to {folder}")

    def _draw(self, trainer: L.Trainer, module: Any, name: str, beside: str, samples: Tensor, batch: Any) -> None:
        """Draw samples and targets as images. Collective: call it on every rank."""
        folder = run_folder(trainer) / PICTURES
        if not (self.shown and trainer.is_global_zero):
            return
        each = len(samples) // len(batch)
        targets, first = (module.images_of(part[: self.shown]) for part in (batch.targets, samples[::each]))
        if targets.dim() != 4:
            return
        columns = min(8, len(targets))
        for path, images in ((folder / f"{name}.png", first), (folder / f"{beside}.png", targets)):
            with warn_if_unwritten(path, "goes on without the picture"), replacing(path) as temporary:
                picture(images, columns, bounds_of(targets)).save(temporary, format="PNG")
