"""The LightningModule: it hosts a student and a frozen teacher, and knows no algorithm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric
from transformers import PreTrainedTokenizerBase

from veto_pl.checks import check_run
from veto_pl.core.seeds import run_seed, seeded
from veto_pl.metrics import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.models.given import as_tokenizer, sources_of, teachers_of
from veto_pl.models.randomness import global_draws
from veto_pl.models.trainable import check_not_compiled
from veto_pl.parts.schedules import Constant, scheduled_values
from veto_pl.rollouts import Sampling
from veto_pl.seams import (
    Engine,
    Models,
    ModelSource,
    Objective,
    PlayingSource,
    PromptBatch,
    Rollouts,
    Schedule,
    Step,
    TokenizerSource,
)
from veto_pl.training.adapter_checkpoints import leave_out_bases
from veto_pl.training.checkpointed import CheckpointedModule
from veto_pl.training.clock import PhaseClock
from veto_pl.training.evaluation import Evaluation, compared_by, compute_all, played_by, validation_metrics
from veto_pl.training.fsdp import FullyShard
from veto_pl.training.hosted import HostedModule, check_models
from veto_pl.training.nonfinite import NonFiniteSteps
from veto_pl.training.optimizers import OptimizedModule, default_optimizer
from veto_pl.training.window import ClosedWindow, Window
from veto_pl.training.window_rollouts import WindowRollouts


class DistillationModule(HostedModule, CheckpointedModule, OptimizedModule):
    """Trains a student by an objective, and validates by letting it answer.

    A model may be a `ModelSource`, a path or hub id, or a model of transformers in memory; a tokenizer likewise.

    Args:
        objective: which tokens to train on, and the loss.
        student: the model that is trained.
        teacher: the frozen model; objectives without a teacher leave it out.
        teachers: further frozen models by name, for objectives whose `panel` asks several.
        reference: another frozen model, for objectives that extrapolate from one: the student's start, or what the
            teacher was before its own training.
        tokenizer: the tokenizer; the student's own by default.
        optimizer: of the student's weights. It gets their names, too, if its first parameter is `named_parameters`.
        lr_schedule: multiplies the optimizer's learning rate at every step.
        evaluation: how completions, or turns of episodes, are sampled in validation, test and prediction. Greedy by
            default.
        evaluation_engine: what runs the student there; None takes the engine that the objective's rollouts give it.
        evaluation_rollout: whose whole episodes are played there; None takes the objective's first rollout with an
            environment, and asks for single answers where it has none.
        metrics: metrics of validation and test; None takes the default set.
        seed: every random draw is a function of it, the step, the rank and the purpose. None is the seed that Lightning
            was given (`lightning.seed_everything`), or else 0; it is settled here, for open seeds of the parts as well.
        skip_limit: the run stops after so many steps in a row whose loss or gradient is not finite. Such a step is left
            out: the weights stay as they are, and the rows that caused it are written to `faults.jsonl`.
        roll_out_window: roll out the prompts of all micro-batches of an accumulation window as one batch. The rows are
            the same either way; it takes less time, and memory for the caches of as many rows.

    Raises:
        ConfigurationError: the objective needs a model that is not given, or a setting cannot work.
    """

    def __init__(
        self,
        objective: Objective,
        student: ModelSource,
        teacher: ModelSource | None = None,
        tokenizer: TokenizerSource | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        lr_schedule: Schedule = Constant(1.0),
        evaluation: Sampling = Sampling(temperature=0.0),
        metrics: list[CompletionMetric | TokenMetric | MetricFamily] | None = None,
        seed: int | None = None,
        skip_limit: int = 10,
        reference: ModelSource | None = None,
        evaluation_engine: Engine | None = None,
        roll_out_window: bool = True,
        teachers: dict[str, ModelSource] | None = None,
        evaluation_rollout: PlayingSource | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule)
        self.student_source, self.teacher_source, self.reference_source = sources_of(student, teacher, reference)
        self.teacher_sources = teachers_of(self.teacher_source, teachers or {}, self.student_source)
        check_models(objective, self.teacher_sources, reference)
        self.objective = seeded(objective)
        self.tokenizer_source = None if tokenizer is None else as_tokenizer(tokenizer, "model.tokenizer")
        self.evaluation = evaluation
        self.evaluation_engine, self.evaluation_rollout = evaluation_engine, evaluation_rollout
        self.playing = played_by(self.objective) if evaluation_rollout is None else evaluation_rollout
        self.seed, self._seed_was_open = run_seed(seed), seed is None
        self.run_config: str | None = None
        self.clock = PhaseClock()
        self.models: Models | None = None
        self.metrics = metrics
        self.panel = compared_by(self.objective, self.teacher_sources)
        turns = 0 if self.playing is None else self.playing.measured_turns
        has_teacher = self.panel is not None
        self.validation_metrics = validation_metrics(metrics, evaluation, with_teacher=has_teacher, turns=turns)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.logged: dict[str, float] = {}
        self.skip_limit = skip_limit
        self._non_finite = NonFiniteSteps(skip_limit)
        self._window: Window | None = None
        self._loaded_step: int | None = None
        self.rolls_out_window = roll_out_window
        self._rollouts = WindowRollouts(roll_out_window)
        self.tell_arguments()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of both models, loaded when it is first asked for."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.student_source, self.tokenizer_source)
        return self._tokenizer

    def configure_callbacks(self) -> list[L.Callback]:
        """Check the settings before data and models are loaded; those of a configuration have been checked already."""
        if self.run_config is None:
            check_run(self, self.trainer)
        return []

    def configure_model(self) -> None:
        """Load the models, once, and move frozen ones to the student's device; on the meta device make shapes only."""
        check_not_compiled(self)
        strategy = None if self._trainer is None else self.trainer.strategy
        if self.models is None:
            if strategy is not None and self.trainer.state.fn == TrainerFn.FITTING:
                self.objective.before_loading(self.tokenizer)
            self.models = load_models(
                self.student_source,
                None,
                self.tokenizer,
                empty=torch.empty(0).is_meta,
                sharding=strategy.sharding if isinstance(strategy, FullyShard) else None,
                reference=self.reference_source,
                teachers=self.teacher_sources,
                objective=self.objective,
            )
            self.models.memories.claim(self.objective.sources)
            self.leave_out_comparisons(self.models)
            # A frozen model is no submodule: it is never saved, optimized, wrapped or averaged.
            self.student = self.models.student.train()
            self.keep_teachers_that_move(self.models)
            leave_out_bases(self)
        for model in self.models.frozen:
            if model.shards is None and strategy is not None:
                model.to(strategy.root_device)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor | dict[str, Any]:
        """Roll out and score one micro-batch; return an undivided sum, which `on_before_optimizer_step` divides.

        Beside it stand the values of each token, as `tokens`, where a callback reads them.
        """
        step = self._step(batch_idx)
        objective = self.objective.active(step)
        with global_draws(step, "training", self.device):
            self.clock.enter("rollout")
            rollouts = self._roll_out(objective, batch, step)
            self.clock.enter("scoring")
            output = objective.loss(rollouts, self._models, step)
        numbers = rollout_numbers(rollouts.values(), self._models.eos_ids)
        loss = self.window.add(replace(output, metrics={**output.metrics, **numbers}), rollouts)
        self._non_finite.keep_rows(batch, rollouts, output)
        self.clock.enter("update")
        return {"loss": loss, "tokens": output.tokens} if self.tokens_are_read else loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run one backward pass, or one per term where the window divides them by different weights."""
        self.window.backward(lambda: super(DistillationModule, self).backward(loss, *args, **kwargs))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the global weights, before they are clipped, and log the step."""
        self._rollouts.clear()
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
        step = self._step(0)
        super().optimizer_step(*args, **kwargs)
        done = not self.logged["train/skipped"]
        if done:
            self.move_teachers(self._models, step)
        self._models.memories.end_step(done=done)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Evaluation]:
        """Let the student answer, and update every metric."""
        return self._evaluate(batch, batch_idx, "validation")

    def on_validation_epoch_end(self) -> None:
        """Show the memories the metrics of a validation during the fit.

        Lightning logs the metrics afterwards; a metric keeps the value that it has computed here.
        """
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._models.memories.observe(compute_all(self.validation_metrics, "validation"))

    def test_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Evaluation]:
        """Do as `validation_step` does, logged under `test/`."""
        return self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Return the student's completions as rows of prompt, completion, reference and reward."""
        return self._answers(batch, batch_idx).rows()

    def on_train_start(self) -> None:
        """Begin the first window, in training mode; a search trains several times, and validates in between."""
        self._window, self._loaded_step = Window(self.trainer), None
        self.student.train()
        self._rollouts.clear()
        self._non_finite.begin(self.trainer, self._window.trained, self.tokenizer)

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

    def _step(self, batch_idx: int) -> Step:
        fitting = self.trainer.training
        return Step(
            index=self.global_step,
            total=self.total_steps() if fitting else max(self.global_step, 1),
            # Evaluation draws its own random numbers, so that looking does not change the run.
            seed=self.seed if fitting else -1 - self.seed,
            rank=self.global_rank,
            micro=batch_idx % self.trainer.accumulate_grad_batches if fitting else batch_idx,
        )

    def _roll_out(self, objective: Objective, batch: PromptBatch, step: Step) -> Rollouts:
        rollouts = self._rollouts.write(objective.sources, batch, self._models, step)
        if objective.needs_rewards:  # by the task; rows that are replayed have prompts of their own
            rollouts = {
                source: (batch if rows.prompts is None else rows.prompts).rewarded(rows, self.tokenizer)
                for source, rows in rollouts.items()
            }
        for rows in rollouts.values():
            _ = rows.host_masks  # while the host waits for a rollout anyway; from here on it runs ahead of the device
        return rollouts

    def _log_step(self, learning_rate: float, closed: ClosedWindow, **others: float) -> None:
        step, means = self._step(0), closed.means
        values = {
            **dict(scheduled_values(self.objective, step.index, step.total)),
            **means,
            "grad_norm": closed.norm,
            **others,
            "tokens": closed.tokens,
            "played_turns": closed.turns,
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

    def _answers(self, batch: PromptBatch, batch_idx: int) -> Evaluation:
        """Let the student answer."""
        how = self.evaluation, self._step(batch_idx), self.answering_engine, self.panel, self.playing
        return Evaluation.sample(batch, self._models, *how)

    def _evaluate(self, batch: PromptBatch, batch_idx: int, prefix: str) -> dict[str, Evaluation]:
        with self.clock.during("validation"):
            evaluation = self._answers(batch, batch_idx).update(
                self.validation_metrics.values(), annotate=prefix == "test" or self.tokens_are_read
            )
        shared: dict[str, Any] = {"on_epoch": True, "batch_size": len(batch)}
        for name, metric in self.validation_metrics.items():
            self.log(f"{prefix}/{name}", cast(Metric, metric), prog_bar=name == "accuracy", **shared)
        self.log_dict({"step": self.steps_done, "epoch": self.current_epoch}, reduce_fx="max", sync_dist=True, **shared)
        return {"evaluation": evaluation}
