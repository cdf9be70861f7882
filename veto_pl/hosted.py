"""What a module is to Lightning beside training: searches, other processes, checkpoints."""

from __future__ import annotations

import math
from typing import Any, NoReturn, cast

import lightning as L
from torch.optim.lr_scheduler import LambdaLR

from veto_pl.optimizers import start_from
from veto_pl.whereabouts import no_module_in, say_where_weights_are


def unlimited() -> float:
    """No budget ends the run."""
    return math.inf


class HostedModule(L.LightningModule):
    """Has a learning rate that Lightning's finder can set, and says where weights are that are sought elsewhere."""

    _rate: float | None = None

    @property
    def lr(self) -> float | None:
        """The learning rate that replaces the optimizer's own; None for that."""
        return self._rate

    @lr.setter
    def lr(self, rate: float) -> None:
        """Also changes the rate of a schedule that runs already."""
        self._rate = rate
        for config in () if self._trainer is None else self.trainer.lr_scheduler_configs:
            start_from(cast(LambdaLR, config.scheduler), rate)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses: a checkpoint holds weights, and must not name the classes that a module is made of."""
        raise no_module_in(checkpoint_path)

    def on_fit_end(self) -> None:
        """Says where the weights are if they are in processes that end with the fit."""
        say_where_weights_are(self.trainer)
