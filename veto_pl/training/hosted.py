"""What a distillation module has from the trainer that runs it: the template of the data, and what is measured."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from veto_pl.core.mistakes import check_kind
from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import ModelSource, Objective
from veto_pl.training.evaluation import add_sources


def check_models(objective: Objective, **given: ModelSource | None) -> None:
    """Raise `ConfigurationError` where an objective is none, or needs a model that is not given, by its role."""
    check_kind(objective, Objective, "model.objective", "an `Objective`")
    for role, source in given.items():
        if source is None and getattr(objective, f"needs_{role}"):
            raise ConfigurationError(
                f"`{type(objective).__name__}` needs a {role}, but `model.{role}` is not set. Name one there."
            )


class HostedModule(OwnErrors, L.LightningModule):
    """Measures each data set of a mixture, and says where weights are that were trained in other processes."""

    validation_metrics: nn.ModuleDict

    @property
    def template(self) -> Any:
        """The template that makes the prompts of the run; None where the data module has none."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return getattr(data, "row_template", getattr(data, "template", None))

    @property
    def tokens_are_read(self) -> bool:
        """Return whether a callback wants the values of each token: it has the attribute `reads_tokens`."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(getattr(callback, "reads_tokens", False) for callback in callbacks)

    def setup(self, stage: str) -> None:
        """Measure each data set of a mixture by itself, too."""
        task = getattr(self.trainer.datamodule, "task", None)  # type: ignore[attr-defined]
        add_sources(self.validation_metrics, getattr(task, "sources", ()))

    def on_fit_end(self) -> None:
        """Say where the weights are after a fit in processes that end with it, as in a notebook on several devices."""
        # Private: no public name tells a launcher that forks or spawns processes from the others.
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            rank_zero_info(
                "The fit ran in processes of its own, so the module of this one has no trained weights. They are in "
                "the checkpoints (the callback `Checkpoints` keeps `last.ckpt`): name one as `ckpt_path` of "
                "`validate`, `test` or `predict`, or to `veto-pl export`."
            )
