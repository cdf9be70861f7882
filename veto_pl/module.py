"""The LightningModule: it hosts a student and a frozen teacher, and knows no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torchmetrics import Metric
from transformers import PreTrainedTokenizerBase

from veto_pl.checks import check_run
from veto_pl.data.image_reader import ImageReader
from veto_pl.metrics import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.metrics.rollout_numbers import rollout_numbers, rollout_sizes
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.models.blueprint import BLUEPRINT, student_files
from veto_pl.models.given import as_tokenizer, sources_of, teachers_of
from veto_pl.models.trainable import check_not_compiled, warn_of_idle_routers
from veto_pl.parts.schedules import Constant
from veto_pl.rollouts import Sampling
from veto_pl.seams import (
    Engine,
    LanguageModel,
    LossOutput,
    Models,
    ModelSource,
    Objective,
    PlayingSource,
    PromptBatch,
    Rollouts,
    Schedule,
    Stat,
    Step,
    TeacherSource,
    TokenizerSource,
)  # fmt: skip
from veto_pl.seams.teacher_names import setting_of
from veto_pl.training.adapter_checkpoints import ADAPTER, adapter_entry, check_base, leave_out_bases
from veto_pl.training.evaluation import Evaluation
from veto_pl.training.faulty_rows import reports_of
from veto_pl.training.fsdp import FullyShard
from veto_pl.training.hosted import HostedModule, check_models
from veto_pl.training.measured import (
    compared_by,
    compute_all,
    played_by,
    read_in_validation,
    validation_metrics,
    warn_of_unread,
)
from veto_pl.training.on_policy import OnPolicyModule
from veto_pl.training.optimizers import default_optimizer
from veto_pl.training.window_rollouts import WindowRollouts


class DistillationModule(HostedModule, OnPolicyModule):
    """Trains a student by an objective, and validates by letting it answer.

    A model may be a `ModelSource`, a path or hub id, or a model of transformers in memory; a tokenizer likewise.

    Args:
        objective: which tokens to train on, and the loss.
        student: the model that is trained.
        teacher: the frozen model, or what tells its scores; objectives without a teacher leave it out.
        teachers: further ones by name, for objectives whose `panel` asks several.
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

    objective: Objective
    student: LanguageModel
    models: Models | None
    arguments: ClassVar[Mapping[str, str]] = {
        "objective": "objective", "student": "student_source", "teacher": "teacher_source",
        "teachers": "further_teachers", "reference": "reference_source", "tokenizer": "tokenizer_source",
        "optimizer": "optimizer",
        "lr_schedule": "lr_schedule", "evaluation": "evaluation", "evaluation_engine": "evaluation_engine",
        "metrics": "metrics", "seed": "seed", "skip_limit": "skip_limit", "roll_out_window": "rolls_out_window",
    }  # fmt: skip

    def __init__(
        self,
        objective: Objective,
        student: ModelSource,
        teacher: TeacherSource | None = None,
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
        teachers: dict[str, TeacherSource] | None = None,
        evaluation_rollout: PlayingSource | None = None,
    ) -> None:
        super().__init__(objective, optimizer, lr_schedule, seed, skip_limit)
        self.student_source, self.teacher_source, self.reference_source = sources_of(student, teacher, reference)
        self.teacher_sources = teachers_of(self.teacher_source, teachers or {}, self.student_source)
        check_models(objective, self.teacher_sources, reference)
        self.tokenizer_source = None if tokenizer is None else as_tokenizer(tokenizer, "model.tokenizer")
        self.evaluation = evaluation
        self.evaluation_engine, self.evaluation_rollout = evaluation_engine, evaluation_rollout
        self.playing = played_by(self.objective) if evaluation_rollout is None else evaluation_rollout
        self.run_config: str | None = None
        self.models: Models | None = None
        self.metrics = metrics
        self.panel = compared_by(self.objective, tuple(self.teacher_sources), self.model_sources)
        turns = 0 if self.playing is None else self.playing.measured_turns
        has_teacher = self.panel is not None
        self.validation_metrics = validation_metrics(metrics, evaluation, with_teacher=has_teacher, turns=turns)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._images: ImageReader | None = None
        self.rolls_out_window = roll_out_window
        self._rollouts = WindowRollouts(roll_out_window)
        self.tell_arguments()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of both models, loaded when it is first asked for."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.student_source, self.tokenizer_source)
        return self._tokenizer

    @property
    def images(self) -> ImageReader:
        """What reads the images of rows, by the student's processor; that is loaded when the first image comes."""
        if self._images is None:
            given = (self.student_source, self.tokenizer_source)
            sources = tuple(one for one in given if one is not None)
            read = {setting_of(name): source for name, source in self.model_sources.items()}
            self._images = ImageReader(self.tokenizer, sources, teachers=read)
        return self._images

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
                self.look_outside()
            models = load_models(
                self.student_source,
                None,
                self.tokenizer,
                empty=torch.empty(0).is_meta,
                sharding=strategy.sharding if isinstance(strategy, FullyShard) else None,
                reference=self.reference_source,
                teachers=self.teacher_sources,
                objective=self.objective,
            )
            self.models = replace(models, images=self.images)
            self.models.memories.claim(self.objective.sources)
            self.leave_out_comparisons(self.models)
            # A frozen model is no submodule: it is never saved, optimized, wrapped or averaged.
            self.student = self.models.student.train()
            self.keep_teachers_that_move(self.models)
            leave_out_bases(self)
        for model in self.models.frozen:
            if model.shards is None and strategy is not None:
                model.to(strategy.root_device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule; warn of experts that nothing keeps in use."""
        warn_of_idle_routers(self.student)
        return super().configure_optimizers()

    def roll_out(self, objective: Objective, batch: PromptBatch, step: Step) -> Rollouts:
        """Return what each source writes for a micro-batch, with rewards where the objective needs them."""
        rollouts = self._rollouts.write(objective.sources, batch, self._models, step)
        if objective.needs_rewards:  # by the task; rows that are replayed have prompts of their own
            asked = objective.rewarded_sources
            rollouts = {
                source: (batch if rows.prompts is None else rows.prompts).rewarded(
                    rows, self.tokenizer, required=source in asked
                )
                for source, rows in rollouts.items()
            }
        for rows in rollouts.values():
            _ = rows.host_masks  # while the host waits for a rollout anyway; from here on it runs ahead of the device
        self.look_at_templates(self.objective, rollouts, self._models, step)
        return rollouts

    def numbers_of(self, rollouts: Rollouts) -> dict[str, Stat]:
        """Return the lengths and other numbers of the completions."""
        rows = rollouts.values()
        return {**rollout_numbers(rows, self._models.eos_ids), **rollout_sizes(rows)}

    def reports_of(
        self, batch: PromptBatch, rollouts: Rollouts, output: LossOutput
    ) -> Callable[[], list[dict[str, Any]]]:
        """Return what describes the rows of a micro-batch, if its loss is not finite."""
        return reports_of(batch, rollouts, output, self.tokenizer)

    def after_update(self, step: Step) -> None:
        """Let teachers that move follow the student."""
        self.move_teachers(self._models, step)

    def forget_rollouts(self) -> None:
        """Forget what was written for micro-batches that have not come."""
        self._rollouts.clear()

    def student_entries(self) -> dict[str, Any]:
        """Return the student's files for an export, and what its adapter stands beside."""
        return {
            BLUEPRINT: student_files(self.student.model, self.tokenizer, self.template, self.images.files),
            ADAPTER: adapter_entry(self.student, self.student_source),
        }

    def check_student(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` where the checkpoint's adapter stands beside other weights."""
        check_base(self.student, checkpoint.get(ADAPTER))

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Evaluation]:
        """Let the student answer, and update every metric."""
        return self._evaluate(batch, batch_idx, "validation")

    def on_validation_epoch_end(self) -> None:
        """Show the memories the metrics of a validation during the fit, and warn where it has compared nothing.

        Lightning logs the metrics afterwards; a metric keeps the value that it has computed here.
        """
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._models.memories.observe(compute_all(self.validation_metrics, "validation"))
        warn_of_unread(self.validation_metrics, partial(self.trainer.strategy.reduce, reduce_op="sum"))

    def test_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Evaluation]:
        """Do as `validation_step` does, logged under `test/`."""
        return self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Return the student's completions as rows of prompt, completion, reference and reward."""
        return self._answers(batch, batch_idx).rows()

    def _answers(self, batch: PromptBatch, batch_idx: int) -> Evaluation:
        """Let the student answer."""
        how = self.evaluation, self.step_of(batch_idx), self.answering_engine, self.panel
        read = read_in_validation(self.objective)
        return Evaluation.sample(batch, self._models, *how, context=read, playing=self.playing)

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

    @property
    def _models(self) -> Models:
        assert self.models is not None, "Lightning calls `configure_model` before any step"
        return self.models
