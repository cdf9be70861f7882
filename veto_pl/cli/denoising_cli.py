"""`veto-pl diffusion fit`, `validate`, `test` and `predict`: the same command line for denoising students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

from veto_pl.callbacks import Budget, Checkpoints, Diagnostics, DistillationProgress, Guards
from veto_pl.callbacks.monitors import Monitors
from veto_pl.cli.build import TRAINER_DEFAULTS, VetoCLI
from veto_pl.cli.compact_parser import ROOTS, CompactParser
from veto_pl.diffusion import DenoiserFiles, DenoisingModule, ImageDataModule
from veto_pl.training.optimizer_groups import trial_optimizers

DESCRIPTION = "Distil denoising models of diffusers on their own few steps."


class DenoisingParser(CompactParser):
    """Parses configurations of denoising students."""

    roots: Mapping[str, type | None] = {
        "model": DenoisingModule,
        "data": ImageDataModule,
        "trainer": Trainer,
        "checkpoint": Checkpoints,
        "diagnostics": Diagnostics,
        "guards": Guards,
        "files": DenoiserFiles,
        "budget": Budget,
        "progress": DistillationProgress,
    } | {name: None for name, owner in ROOTS.items() if owner is None}


class DenoisingCLI(VetoCLI):
    """The command line of `DenoisingModule`: run folder, checkpoints and resuming are those of texts."""

    parser_kind = DenoisingParser
    trainer_settings: Mapping[str, Any] = {**TRAINER_DEFAULTS, "callbacks": [Monitors()]}

    def __init__(self, args: Sequence[str] | None = None, *, run: bool = True) -> None:
        super().__init__(args, run=run, description=DESCRIPTION)

    def check_settings(self, trainer: Mapping[str, Any], callbacks: Mapping[str, Callback]) -> None:
        """Make the optimizer for one weight: what it refuses is known before a model is loaded."""
        for _, make in trial_optimizers(self.model.optimizer):
            make()
