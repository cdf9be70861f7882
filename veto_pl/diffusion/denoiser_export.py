"""A trained denoiser as a folder that diffusers reads."""

from __future__ import annotations

import copy
from pathlib import Path

from veto_pl.diffusion.denoiser import Denoiser
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import replacing

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
