"""A trained denoiser as a folder that diffusers reads, and pictures of what it samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from veto_pl.core.extras import require_extra
from veto_pl.diffusion.denoiser import Denoiser
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import replacing
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.paths import expand_home
from veto_pl.storage.run_folder import run_folder

TRANSFORMER = "transformer"
"""Where a pipeline of diffusers keeps its model."""


def export_denoiser(denoiser: Denoiser, folder: str | Path) -> None:
    """Write the transformer into `folder/transformer`, whole or not at all; an adapter is merged into its weights.

    `from_pretrained(folder, subfolder="transformer")` of its class reads it, and a pipeline takes it as `transformer=`.

    Raises:
        ConfigurationError: the folder has other files.
    """
    final = Path(folder).expanduser()
    check_export_folder(final)
    model = denoiser.model
    if getattr(model, "_hf_peft_config_loaded", False):  # private: the mark of diffusers for an adapter
        model = copy.deepcopy(model)
        model.fuse_lora()
        model.unload_lora()
    with replacing(final) as temporary:
        model.save_pretrained(temporary / TRANSFORMER)


def check_export_folder(folder: Path) -> None:
    """Raise `ConfigurationError` for a folder with files that are no export, which would be lost."""
    others = [path.name for path in folder.iterdir() if path.name != TRANSFORMER] if folder.is_dir() else []
    if others or folder.is_file():
        raise ConfigurationError(
            f"The export `{folder}` would replace {f'`{others[0]}`' if others else 'a file'}. Name an empty folder."
        )


def picture(images: Tensor, columns: int = 8) -> Any:
    """Return images as one picture of Pillow, row by row, the darkest number black and the brightest white.

    Args:
        images: [N, C, H, W]; of C channels, three are colours, and else the first is shown.
        columns: images beside each other.
    """
    require_extra("PIL", extra="diffusion", needed_by="A picture of samples")
    from PIL import Image

    shown = images.detach().float().cpu()
    shown = shown[:, :3] if shown.shape[1] == 3 else shown[:, :1].expand(-1, 3, -1, -1)
    low, high = shown.min(), shown.max()
    shown = torch.nn.functional.pad((shown - low) / (high - low).clamp(min=1e-12), (0, 1, 0, 1), value=1.0)
    shown = torch.cat([shown, shown.new_ones(-len(shown) % columns, *shown.shape[1:])])
    grid = shown.view(-1, columns, *shown.shape[1:]).permute(0, 3, 1, 4, 2).reshape(-1, columns * shown.shape[-1], 3)
    return Image.fromarray((grid * 255).round().to(torch.uint8).numpy())


class DenoiserFiles(L.Callback):
    """Writes what the student samples in each validation, and the student itself when training ends.

    Args:
        folder: of the export, inside the run folder unless it is absolute; None writes none.
        shown: samples of a picture, `samples/step-N.png`, above the targets of the same rows; 0 draws none.
    """

    def __init__(self, folder: str | None = "export", shown: int = 16) -> None:
        self.folder = expand_home(folder)
        self.shown = shown

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise `ConfigurationError` before the run if the export would replace other files."""
        if stage == "fit" and self.folder is not None:
            check_export_folder(run_folder(trainer) / self.folder)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Draw samples of the first batch. Collective: call it on every rank."""
        samples, folder = outputs["samples"], run_folder(trainer) / "samples"
        if batch_idx or not self.shown or not trainer.is_global_zero or samples.dim() != 4:
            return
        each = len(samples) // len(batch)
        both = torch.cat([samples[::each][: self.shown], batch.targets[: self.shown]])
        path = folder / f"step-{pl_module.steps_done:06}.png"
        with warn_if_unwritten(path, "goes on without the picture"), replacing(path) as temporary:
            picture(both, columns=min(self.shown, len(batch))).save(temporary, format="PNG")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the student. Collective: call it on every rank."""
        if self.folder is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder(trainer) / self.folder
        if trainer.is_global_zero:
            with warn_if_unwritten(folder, "keeps the student in its checkpoints"):
                export_denoiser(pl_module.student, folder)  # type: ignore[arg-type]
            rank_zero_info(f"Exported the student to {folder}")
