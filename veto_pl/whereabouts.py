"""Where the trained weights are, for those who look for them elsewhere."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.exceptions import ConfigurationError


def say_where_weights_are(trainer: L.Trainer) -> None:
    """Says so where a fit has run in processes that end with it, as in a notebook on several devices."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        rank_zero_info(
            "The fit ran in processes of its own, so the module of this one has no trained weights. They are in the "
            "checkpoints (the callback `Checkpoints` keeps `last.ckpt`): name one as `ckpt_path` of `validate`, "
            "`test` or `predict`, or to `veto-pl export`."
        )


def no_module_in(checkpoint: str | Path) -> ConfigurationError:
    """Returns the error for somebody who wants a module made from a checkpoint alone."""
    return ConfigurationError(
        "`load_from_checkpoint` cannot make a module: a checkpoint holds weights, and names neither objective nor "
        f"models. `veto-pl export {checkpoint} FOLDER` writes the student as a Hugging Face folder; or make the module "
        "as for training, and name the checkpoint as `ckpt_path` of `trainer.fit`, `validate`, `test` or `predict`."
    )
