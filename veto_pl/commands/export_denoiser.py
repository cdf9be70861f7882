"""`veto-pl diffusion export`: a checkpoint of a denoising student as a folder that diffusers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from veto_pl.commands.export import read_student
from veto_pl.diffusion import DenoisingModule, export_denoiser
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.checkpoint_place import check_checkpoint
from veto_pl.training.adapter_checkpoints import ADAPTER, check_base
from veto_pl.training.arguments import made_again


def export_denoiser_checkpoint(checkpoint: str | Path, folder: str | Path, pipeline: str | None = None) -> Path:
    """Make the student of a checkpoint again and export it; see `export_denoiser`. The teacher is not loaded.

    Args:
        checkpoint: a `.ckpt` file, or the folder of a sharded run.
        folder: where to write.
        pipeline: a folder or hub id of the pipeline that the student belongs to; None writes no pipeline.

    Raises:
        ConfigurationError: the checkpoint is missing, damaged or none of such a student, or its base is another.
    """
    check_checkpoint(str(checkpoint))
    settings, weights = read_student(checkpoint)
    told = settings.get(DenoisingModule.CHECKPOINT_HYPER_PARAMS_KEY)
    module = DenoisingModule(**made_again(told, {}, DenoisingModule, Path(checkpoint), trusted=False))
    student = module.student_source.load()
    check_base(cast(Any, student), settings.get(ADAPTER))
    missing, unknown = student.load_state_dict(weights, strict=False)
    if unknown or (missing and settings.get(ADAPTER) is None):
        raise ConfigurationError(
            f"The weights of `{checkpoint}` are not those of its student: `{[*unknown, *missing][0]}` is in one alone. "
            "The checkpoint is damaged."
        )
    export_denoiser(student, folder, pipeline)
    return Path(folder)
