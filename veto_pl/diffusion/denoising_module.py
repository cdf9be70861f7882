"""The LightningModule that hosts a denoising student and its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from veto_pl.core.mistakes import check_kind
from veto_pl.core.seeds import seeded
from veto_pl.diffusion.denoiser import Denoiser, Denoisers
from veto_pl.diffusion.denoiser_export import export_denoiser
from veto_pl.diffusion.denoiser_sharding import shard_denoiser
from veto_pl.diffusion.denoiser_sources import DenoiserSource
from veto_pl.diffusion.denoising_objectives import loss_at, numbers
from veto_pl.diffusion.denoising_quantities import TRAINED, shown_at
from veto_pl.diffusion.few_steps import FewSteps, TrajectorySource
from veto_pl.diffusion.image_distance import EnergyDistance
from veto_pl.diffusion.pipeline_images import PipelineDecoder
from veto_pl.diffusion.pipelines import Surroundings
from veto_pl.diffusion.trajectories import ConditionBatch, Trajectories
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.sharding import full_weights
from veto_pl.parts.schedules import Constant
from veto_pl.seams import AnyObjective, LossOutput, Schedule, Stat, Step
from veto_pl.storage.run_folder import is_first_rank
from veto_pl.training.adapter_checkpoints import ADAPTER, adapter_entry, check_base, leave_out_bases
from veto_pl.training.checkpointed import EXPORTED_BY
from veto_pl.training.fsdp import FullyShard
from veto_pl.training.on_policy import OnPolicyModule
from veto_pl.training.optimizers import default_optimizer

Rolled = Mapping[TrajectorySource, Trajectories]


class DenoisingModule(OnPolicyModule):
    """Trains a denoising student by an objective, and validates by letting it sample.

    Args:
        objective: a `DenoisingObjective`, or a sum or phases of such.
        student: the model that is trained.
        teacher: a frozen model, or an `AveragedDenoiser`, which follows the student; objectives without one leave it
            out.
        optimizer: of the student's weights.
        lr_schedule: multiplies the optimizer's learning rate at every step.
        evaluation: how the student samples in a validation.
        decoder: makes images of latents for pictures; None shows them as they are.
        seed: every random draw is a function of it, the step and the row; None takes Lightning's.
        skip_limit: the run stops after so many steps in a row whose loss or gradient is not finite.

    Raises:
        ConfigurationError: the objective needs what is not given, or reads what is no trajectory.
    """

    plays = False
    models: Denoisers | None
    student: Denoiser
    arguments: ClassVar[Mapping[str, str]] = {
        "objective": "objective", "student": "student_source", "teacher": "teacher_source", "optimizer": "optimizer",
        "lr_schedule": "lr_schedule", "evaluation": "evaluation", "decoder": "decoder", "seed": "seed",
        "skip_limit": "skip_limit",
    }  # fmt: skip

    def __init__(
        self,
        objective: AnyObjective,
        student: DenoiserSource,
        teacher: DenoiserSource | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        lr_schedule: Schedule = Constant(1.0),
        evaluation: FewSteps = FewSteps(),
        seed: int | None = None,
        skip_limit: int = 10,
        decoder: PipelineDecoder | None = None,
    ) -> None:
        super().__init__(objective, optimizer, lr_schedule, seed, skip_limit)
        check_kind(student, DenoiserSource, "model.student", "a `DenoiserSource`, such as `PretrainedDenoiser`")
        check_kind(teacher, (DenoiserSource, type(None)), "model.teacher", "a `DenoiserSource`")
        _check_objective(self.objective, teacher)
        self.student_source = seeded(student)
        self.teacher_source = None if teacher is None else seeded(teacher)
        self.evaluation, self.decoder = evaluation, decoder
        self._decoding: Surroundings | None = None
        self.distance = EnergyDistance()
        self.run_config: str | None = None
        self.models: Denoisers | None = None
        self.tell_arguments()

    def configure_model(self) -> None:
        """Load the models, once, and move a frozen teacher to the student's device, or spread both over the ranks."""
        if self.models is None:
            student = self.student_source.load().train()
            teacher = None if self.teacher_source is None else self.teacher_source.load().requires_grad_(False).eval()
            strategy = None if self._trainer is None else self.trainer.strategy
            if isinstance(strategy, FullyShard):
                for role, model in (("student", student), ("teacher", teacher)):
                    if model is not None:
                        shard_denoiser(model, strategy.sharding(role))
            self.models = Denoisers(student, teacher)
            self.models.memories.claim(self.objective.sources)
            self.student = student
            if teacher is not None and self.teacher_source is not None and self.teacher_source.moves:
                _check_alike(student, teacher)
                self.add_module("teacher", teacher)  # so that checkpoints hold it; a frozen one is no submodule
            leave_out_bases(self)
        frozen = self.models.teacher
        if frozen is not None and frozen.shards is None and self._trainer is not None:
            frozen.to(self.trainer.strategy.root_device)

    def roll_out(self, objective: Any, batch: ConditionBatch, step: Step) -> Rolled:
        """Return the states of each source."""
        return {source: source(batch, self._models, step) for source in objective.sources}

    def numbers_of(self, rollouts: Rolled) -> dict[str, Stat]:
        """Return how many states are trained at."""
        return numbers(rollouts)

    def reports_of(
        self, batch: ConditionBatch, rollouts: Rolled, output: LossOutput
    ) -> Callable[[], list[dict[str, Any]]]:
        """Return what says which rows of a micro-batch have states that are not finite."""

        def reports() -> list[dict[str, Any]]:
            broken = {
                int(number)
                for rows in rollouts.values()
                for number, z in zip(rows.batch.numbers.tolist(), rows.states, strict=True)
                if not z.isfinite().all()
            }
            known = enumerate(batch.numbers.tolist())
            return [{"row": i, "number": n, "not_finite": ["states"] if n in broken else []} for i, n in known]

        return reports

    def after_update(self, step: Step) -> None:
        """Let a teacher that moves follow the student."""
        models = self._models
        if self.teacher_source is not None:
            self.teacher_source.follow(models.required_teacher(), models.student, step)

    def sample(self, batch: ConditionBatch, batch_idx: int = 0) -> Tensor:
        """Return images of the student for the rows, [B * samples, ...], by the noise of an evaluation."""
        return self.evaluation.sample(self._models.student, batch, self.step_of(batch_idx))

    def images_of(self, states: Tensor) -> Tensor:
        """Return what states show, [B, C, H, W]: themselves, or what the decoder makes of latents."""
        if self.decoder is None:
            return states
        if self._decoding is None:
            self._decoding = self.decoder.load()
            self._decoding.pipeline.to(self.device)
        with torch.no_grad():
            return torch.cat([self._decoding.pixels(one).float() for one in torch.split(states, 1)])

    def validation_step(self, batch: ConditionBatch, batch_idx: int) -> dict[str, Tensor]:
        """Let the student sample, and measure how far its images are from the targets."""
        return self._evaluate(batch, batch_idx, "validation")

    def test_step(self, batch: ConditionBatch, batch_idx: int) -> dict[str, Tensor]:
        """Do as `validation_step` does, logged under `test/`."""
        return self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: ConditionBatch, batch_idx: int, prefix: str) -> dict[str, Tensor]:
        with self.clock.during("validation"):
            samples = self.sample(batch, batch_idx)
            self.distance.update(samples, batch.targets)
        shared: dict[str, Any] = {"on_epoch": True, "batch_size": len(batch)}
        self.log(f"{prefix}/energy_distance", self.distance, **shared)
        self.log_dict({"step": self.steps_done, "epoch": self.current_epoch}, reduce_fx="max", sync_dist=True, **shared)
        return {"samples": samples}

    def predict_step(self, batch: ConditionBatch, batch_idx: int) -> Tensor:
        """Return images of the student."""
        return self.sample(batch, batch_idx)

    def export(self, folder: str | Path, pipeline: str | None = None) -> None:
        """Write the student as diffusers reads it, in the place of an earlier export; see `export_denoiser`.

        The first rank writes. Collective: call it on every rank.
        """
        student = self._models.student
        weights = None if student.shards is None else full_weights(cast(Any, student))
        if is_first_rank():
            if weights is not None:
                student = self.student_source.load()
                student.model.load_state_dict(weights)
            export_denoiser(student, folder, pipeline)

    def student_entries(self) -> dict[str, Any]:
        """Return what a checkpoint says of the base of an adapter, and how it is exported."""
        student, source = cast(Any, self._models.student), cast(Any, self.student_source)
        return {ADAPTER: adapter_entry(student, source), EXPORTED_BY: "veto-pl diffusion export"}

    def check_student(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` where the checkpoint's adapter stands beside other weights."""
        check_base(cast(Any, self._models.student), checkpoint.get(ADAPTER))

    @property
    def quantities(self) -> Mapping[str, Any]:
        """Return how the distance and the numbers of the training are shown."""
        times = sorted({t for source in self.objective.sources for t in source.grid})
        return {"energy_distance": self.distance, **TRAINED, **{f"train/{loss_at(t)}": shown_at(t) for t in times}}

    @property
    def _models(self) -> Denoisers:
        return cast(Denoisers, super()._models)


def _check_objective(objective: AnyObjective, teacher: DenoiserSource | None) -> None:
    name = type(objective).__name__
    for source in objective.sources:
        check_kind(source, TrajectorySource, "model.objective", "an objective of states of a denoising model")
    if objective.needs_teacher and teacher is None:
        raise ConfigurationError(f"`{name}` needs a teacher, but `model.teacher` is not set. Name one there.")


def _check_alike(student: Denoiser, teacher: Denoiser) -> None:
    ours, theirs = ([tuple(p.shape) for p in model.parameters()] for model in (student, teacher))
    if ours != theirs:
        raise ConfigurationError(
            "A teacher that follows the student must have its architecture, but their weights differ in shape. Give "
            "`model.teacher.source` what `model.student` has."
        )
