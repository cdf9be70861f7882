"""The trained student as a Hugging Face folder, at the end of the run."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.export import export_student
from veto_pl.going_on import going_on
from veto_pl.module import DistillationModule
from veto_pl.run_folder import run_folder


class Export(L.Callback):
    """Writes student, tokenizer and model card when training ends.

    Args:
        folder: where to write, inside the run folder unless it is absolute; None switches the callback off.
    """

    def __init__(self, folder: str | None = "export") -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the folder and says where it is."""
        if self.folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, DistillationModule), "this callback belongs to `DistillationModule`"
        folder = run_folder(trainer) / self.folder
        with going_on(f"The export {folder}", f"`veto-pl export CHECKPOINT {folder}` can make it later"):
            export_student(pl_module.student, pl_module.tokenizer, pl_module.run_config, folder)
            rank_zero_info(f"Exported the student to {folder}")
