"""Runs that end with a validation after so many steps, tokens or seconds."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from veto_pl.exceptions import ConfigurationError
from veto_pl.training.on_policy import OnPolicyModule

PHASES = ("rollout", "scoring", "update", "data")
"""What counts as training time; validation, checkpoints and the start do not."""


class Budget(L.Callback):
    """Ends a run after so many steps, completion tokens, turns or seconds of training, whichever comes first.

    Schedules then run over the budget: the length of the run that they see is the steps done, divided by the share of
    the budget that these took. `trainer.max_steps` and `trainer.max_epochs` still hold; the run ends where the first of
    all limits is reached, with a validation.

    Args:
        steps: optimizer steps; as `trainer.max_steps`, but with a validation wherever the run ends. None for no limit.
        tokens: completion tokens of the rollouts, trained on or left out, over all ranks; None for no limit.
        seconds: of rollout, scoring, update and data loading on the first rank; None for no limit. Such a run depends
            on the speed of the machine, so another one of it differs.
        turns: of the student in the episodes of the rollouts, over all ranks; a completion without an environment is
            one. None for no limit.

    Raises:
        ConfigurationError: a limit that is not above 0.
    """

    def __init__(
        self,
        steps: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
        turns: int | None = None,
    ) -> None:
        given = {"steps": steps, "tokens": tokens, "seconds": seconds, "turns": turns}
        for name, limit in given.items():
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigurationError(f"`Budget.{name}` must be above 0, got {limit}.")
        self.limits = {name: limit for name, limit in given.items() if limit is not None}
        self._spent = {"tokens": 0.0, "seconds": 0.0, "turns": 0.0}
        self._steps = 0
        self._validates_first = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the module `horizon`, from which schedules read the run's length.

        Raises:
            ConfigurationError: turns are limited in a run that has none, which would never end.
        """
        assert isinstance(pl_module, OnPolicyModule), "this callback belongs to a module that trains on-policy"
        if "turns" in self.limits and not pl_module.plays:
            raise ConfigurationError("`budget.turns`: given a limit, expected none, for this run has no turns.")
        if self.limits:
            pl_module.horizon = self.horizon

    def horizon(self) -> float:
        """Return the estimated number of optimizer steps of the whole run; infinite before the first step."""
        share = self._share
        return max(round(self._steps / share), self._steps, 1) if share else math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop a resumed run whose budget is spent, unless an interrupted validation has to be finished first."""
        validation = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        self._validates_first = validation.ready > validation.completed  # what is left of one comes first
        if not self._validates_first:
            trainer.should_stop |= self._share >= 1

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Raise `StopIteration`, by which Lightning ends the epoch, if the budget is spent and no validation is due."""
        if self._validates_first and self._share >= 1:
            trainer.should_stop = True
            raise StopIteration
        self._validates_first = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the run after a validation if the budget is spent."""
        trainer.should_stop |= self._share >= 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Count an optimizer step, and stop the run if the budget is spent. Collective: call it on every rank."""
        if not self.limits or trainer.global_step == self._steps:
            return
        assert isinstance(pl_module, OnPolicyModule), "this callback belongs to a module that trains on-policy"
        logged = pl_module.logged
        self._steps = trainer.global_step
        self._spent["tokens"] += logged["train/tokens"]
        self._spent["turns"] += logged.get("train/played_turns", 0.0)
        # The clocks of the ranks differ, and all have to stop at the same step.
        seconds = sum(logged.get(f"train/seconds/{phase}", 0.0) for phase in PHASES)
        self._spent["seconds"] += trainer.strategy.broadcast(seconds)
        trainer.should_stop |= self._share >= 1

    @property
    def _share(self) -> float:
        """Return the largest spent fraction of any limit; 0.0 without limits."""
        spent = {**self._spent, "steps": self._steps}
        return max((spent[name] / limit for name, limit in self.limits.items()), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens, turns, seconds and steps spent so far."""
        return {"spent": dict(self._spent), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the tokens, turns, seconds and steps spent so far; old checkpoints tell of no turns."""
        self._spent, self._steps = self._spent | state_dict["spent"], state_dict["steps"]
