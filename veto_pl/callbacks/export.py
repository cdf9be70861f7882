"""The trained student as a Hugging Face folder, at the end of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.export import CHAT_TEMPLATE, export_student
from veto_pl.models.tokenizers import with_chat_template
from veto_pl.module import DistillationModule
from veto_pl.paths import at_home
from veto_pl.seams import Template


class Export(L.Callback):
    """Writes student, tokenizer and model card when training ends.

    Args:
        folder: where to write, inside the run folder unless it is absolute; None switches the callback off.
    """

    def __init__(self, folder: str | None = "export") -> None:
        self.folder = at_home(folder)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the chat template of the run's prompts for exports of the checkpoint."""
        checkpoint[CHAT_TEMPLATE] = _chat_template(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the folder and says where it is."""
        if self.folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, DistillationModule), "this callback belongs to `DistillationModule`"
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder
        tokenizer = with_chat_template(pl_module.tokenizer, _chat_template(trainer, pl_module))
        export_student(pl_module.student, tokenizer, pl_module.run_config, folder)
        rank_zero_info(f"Exported the student to {folder}")


def _chat_template(trainer: L.Trainer, pl_module: L.LightningModule) -> str | dict[str, str] | None:
    """What makes the run's prompts of messages; the tokenizer's own where no template is known."""
    assert isinstance(pl_module, DistillationModule), "this callback belongs to `DistillationModule`"
    template = getattr(trainer.datamodule, "template", None)  # type: ignore[attr-defined]
    if not isinstance(template, Template):
        own: str | dict[str, str] | None = pl_module.tokenizer.chat_template
        return own
    return template.chat_template(pl_module.tokenizer)
