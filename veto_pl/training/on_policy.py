"""On-policy training, whatever the student produces: windows, denominators, skipped steps, schedules and the log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from veto_pl.core.mistakes import check_kind
from veto_pl.core.seeds import run_seed, seeded
from veto_pl.models.randomness import global_draws
from veto_pl.parts.schedules import scheduled_values
from veto_pl.seams import AnyObjective, LossOutput, Schedule, Stat, Step
from veto_pl.training.checkpointed import CheckpointedModule
from veto_pl.training.clock import PhaseClock
from veto_pl.training.nonfinite import NonFiniteSteps
from veto_pl.training.optimizers import OptimizedModule
from veto_pl.training.window import ClosedWindow, Window


class OnPolicyModule(CheckpointedModule, OptimizedModule):
    """Trains a student by an objective on what the student has produced, and knows neither texts nor metrics.

    A subclass makes the models (`configure_model`), lets sources roll out (`roll_out`), counts (`numbers_of`) and
    describes the rows of a fault (`reports_of`). It may move teachers (`after_update`) and forget what was written
    ahead (`forget_rollouts`).

    Args:
        objective: what is trained on, and the loss.
        optimizer: of the student's weights.
        lr_schedule: multiplies the optimizer's learning rate at every step.
        seed: every random draw is a function of it, the step, the rank and the purpose; None takes Lightning's.
        skip_limit: the run stops after so many steps in a row whose loss or gradient is not finite.

    Attributes:
        plays: whether rollouts have turns, which a budget can limit.

    Raises:
        ConfigurationError: the objective is none, or `skip_limit` is below 1.
    """

    plays: ClassVar[bool] = True

    def __init__(
        self,
        objective: AnyObjective,
        optimizer: OptimizerCallable,
        lr_schedule: Schedule,
        seed: int | None,
        skip_limit: int,
    ) -> None:
        super().__init__(optimizer, lr_schedule)
        check_kind(objective, AnyObjective, "model.objective", "an objective")
        self.objective = seeded(objective)
        self.seed, self._seed_was_open = run_seed(seed), seed is None
        self.clock = PhaseClock()
        self.logged: dict[str, float] = {}
        self.skip_limit = skip_limit
        self._non_finite = NonFiniteSteps(skip_limit)
        self._window: Window | None = None
        self._loaded_step: int | None = None

    @abstractmethod
    def roll_out(self, objective: Any, batch: Any, step: Step) -> Mapping[Any, Any]:
        """Return what each source of the objective produces for a micro-batch."""

    @abstractmethod
    def numbers_of(self, rollouts: Mapping[Any, Any]) -> dict[str, Stat]:
        """Return what is logged of rollouts; among it `tokens`, how much of them is trained on."""

    @abstractmethod
    def reports_of(
        self, batch: Any, rollouts: Mapping[Any, Any], output: LossOutput
    ) -> Callable[[], list[dict[str, Any]]]:
        """Return what describes the rows of a micro-batch, if its loss is not finite."""

    def after_update(self, step: Step) -> None:
        """Do what follows an optimizer step that was not skipped; nothing by default."""

    def forget_rollouts(self) -> None:
        """Forget what was rolled out for micro-batches that have not come; nothing by default."""

    @property
    def quantities(self) -> Mapping[str, Any]:
        """Return what tells title, unit and direction of a metric or, by `train/NAME`, of what is logged in training.

        By default those are the metrics of `validation_metrics`.
        """
        return getattr(self, "validation_metrics", {})

    @property
    def tokens_are_read(self) -> bool:
        """Return whether a callback wants the values of each token: it has the attribute `reads_tokens`."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(getattr(callback, "reads_tokens", False) for callback in callbacks)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | dict[str, Any]:
        """Roll out and score one micro-batch; return an undivided sum, which `on_before_optimizer_step` divides.

        Beside it stand the values of each token, as `tokens`, where a callback reads them.
        """
        step = self.step_of(batch_idx)
        objective = self.objective.active(step)
        with global_draws(step, "training", self.device):
            self.clock.enter("rollout")
            rollouts = self.roll_out(objective, batch, step)
            self.clock.enter("scoring")
            output = objective.loss(rollouts, self._models, step)
        loss = self.window.add(replace(output, metrics={**output.metrics, **self.numbers_of(rollouts)}))
        self._non_finite.keep_rows(self.reports_of(batch, rollouts, output))
        self.clock.enter("update")
        return {"loss": loss, "tokens": output.tokens} if self.tokens_are_read else loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run one backward pass, or one per term where the window divides them by different weights."""
        self.window.backward(lambda: super(OnPolicyModule, self).backward(loss, *args, **kwargs))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the global weights, before they are clipped, and log the step."""
        self.forget_rollouts()
        closed = self.window.close()
        skipped = float(self._non_finite.skip_if_not_finite(optimizer, closed.means, closed.norm))
        self._log_step(float(optimizer.param_groups[0]["lr"]), closed, skipped=skipped)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does, but by the norm that the window has computed already, where no model is sharded."""
        if not gradient_clip_val or gradient_clip_algorithm not in (None, "norm") or self._models.sharded:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            torch.nn.utils.clip_grads_with_norm_(self.window.trained, gradient_clip_val, self.window.norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update teachers that follow the student, and the memories."""
        step = self.step_of(0)
        super().optimizer_step(*args, **kwargs)
        done = not self.logged["train/skipped"]
        if done:
            self.after_update(step)
        self._models.memories.end_step(done=done)

    def on_train_start(self) -> None:
        """Begin the first window, in training mode; a search trains several times, and validates in between."""
        self._window, self._loaded_step = Window(self.trainer), None
        self.student.train()
        self.forget_rollouts()
        self._non_finite.begin(self.trainer, self._window.trained)

    def on_train_batch_start(self, *args: Any) -> None:
        """Begin a micro-batch in the accumulation window."""
        self.window.begin_micro_batch()

    def on_train_batch_end(self, *args: Any) -> None:
        """Count the time until the next rollout as data loading and callbacks."""
        self.clock.enter("data")

    @property
    def steps_done(self) -> int:
        """The optimizer steps that made the student: the trainer's, or those of the checkpoint that is evaluated."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        return self.global_step if fitting or self._loaded_step is None else self._loaded_step

    @property
    def window(self) -> Window:
        """The micro-batches since the last optimizer step."""
        assert self._window is not None, "Lightning calls `on_train_start` before any step"
        return self._window

    def step_of(self, batch_idx: int) -> Step:
        """Return where training or evaluation stands at a batch, from which every random draw follows."""
        fitting = self.trainer.training
        return Step(
            index=self.global_step,
            total=self.total_steps() if fitting else max(self.global_step, 1),
            # Evaluation draws its own random numbers, so that looking does not change the run.
            seed=self.seed if fitting else -1 - self.seed,
            rank=self.global_rank,
            micro=batch_idx % self.trainer.accumulate_grad_batches if fitting else batch_idx,
        )

    def _log_step(self, learning_rate: float, closed: ClosedWindow, **others: float) -> None:
        step, means = self.step_of(0), closed.means
        values = {
            **dict(scheduled_values(self.objective, step.index, step.total)),
            **means,
            "grad_norm": closed.norm,
            **others,
            "tokens": closed.tokens,
            **closed.sums,
            "learning_rate": learning_rate,
            **self._models.memories.numbers(),
            **self.clock.read(closed.own_tokens),
        }
        if "loss" not in values:
            values["loss"] = sum(value for name, value in means.items() if name.endswith("/loss"))
        self.logged = {f"train/{name}": float(value) for name, value in values.items()}
        # Tensors of the host: of numbers Lightning makes tensors of the device, to fetch them again one by one.
        numbers = self.logged | {"step": step.index + 1, "epoch": self.current_epoch}  # its own step is one less
        self.log_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in numbers.items()})
