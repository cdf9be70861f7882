"""The trained student as a Hugging Face folder, at the end of the run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.blueprint import exported_tokenizer
from veto_pl.models.checkpoint_weights import weights_of
from veto_pl.models.export_folder import AdapterForm, check_folder, export_student
from veto_pl.module import DistillationModule
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.paths import expand_home
from veto_pl.storage.run_folder import run_folder

Which = Literal["last", "best"]


class Export(L.Callback):
    """Writes student, tokenizer, model card and checksums when training ends, in the place of an earlier export.

    What it has written is read again, and kept only where its logits are the student's.

    Args:
        folder: where to write, inside the run folder unless it is absolute; None switches the callback off.
        which: the `last` weights of the run, or those of its `best` checkpoint by `checkpoint.monitor`. The module
            keeps the last ones.
        adapter: of a student with an adapter: `merged` writes a model as any other, `separate` the adapter as peft
            does, and its base beside it unless that is on the hub.
    """

    def __init__(self, folder: str | None = "export", which: Which = "last", adapter: AdapterForm = "merged") -> None:
        self.folder = expand_home(folder)
        self.which = which
        self.adapter = adapter

    @property
    def needs_best(self) -> bool:
        """Whether some checkpoint has to be known as the best."""
        return self.folder is not None and self.which == "best"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise `ConfigurationError` before the run if the folder of the export cannot be replaced."""
        if stage == "fit" and (folder := self._target(trainer)) is not None:
            check_folder(folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the student, and log the folder. Collective: call it on every rank."""
        if (folder := self._target(trainer)) is None:
            return
        assert isinstance(pl_module, DistillationModule), "this callback belongs to `DistillationModule`"
        chosen = _best(trainer) if self.needs_best else None
        try:
            with (
                warn_if_unwritten(f"The export {folder}", f"`veto-pl export CHECKPOINT {folder}` can make it later"),
                nullcontext() if chosen is None else weights_of(chosen.best_model_path, pl_module.student),
            ):
                export_student(
                    pl_module.student,
                    exported_tokenizer(pl_module.tokenizer, pl_module.template),
                    pl_module.run_config,
                    folder,
                    adapter=self.adapter,
                    source=pl_module.student_source,
                    processor=pl_module.images.files(pl_module.student.model),
                )
                rank_zero_info(f"Exported the student to {folder}{'' if chosen is None else _said_of(chosen)}")
        except ConfigurationError as error:  # an error of the first rank, for which the others would wait
            rank_zero_warn(
                f"The student was not exported. {error} The weights are in the checkpoints of the run: `veto-pl export "
                "CHECKPOINT FOLDER` makes the export from one of them."
            )

    def _target(self, trainer: L.Trainer) -> Path | None:
        if self.folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        return run_folder(trainer) / self.folder


def _best(trainer: L.Trainer) -> ModelCheckpoint | None:
    """Return what has kept the best checkpoint; warn if there is none, for instance since nothing was validated."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.best_model_path:
            return callback
    rank_zero_warn("`export.which: best`: the run has kept no checkpoint as its best one, so the last one is exported.")
    return None


def _said_of(callback: ModelCheckpoint) -> str:
    score = "" if callback.best_model_score is None else f", {float(callback.best_model_score):.4g}"
    return f" with the weights of {Path(callback.best_model_path).name}, the best by `{callback.monitor}`{score}"
