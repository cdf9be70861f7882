"""One optimizer step in the middle of a run, on tensors without storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from veto_pl.core.memory import remembers
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import TokenMetric
from veto_pl.metrics.generations import Generations
from veto_pl.module import DistillationModule
from veto_pl.planning.as_accelerator import as_on_an_accelerator, optimizer_of
from veto_pl.planning.observation import Observation, Phase
from veto_pl.planning.own_ids import in_own_ids
from veto_pl.planning.planned_objective import most_rows, without_examples
from veto_pl.planning.rollout import Lengths, bytes_read, completed, roll_out
from veto_pl.planning.shape_models import SAMPLE_ROWS, Weights, phases_of, skeletons, without_storage
from veto_pl.planning.told import shape_of
from veto_pl.rollouts import DecodeLoop, FromStudent
from veto_pl.seams import Models, Objective, Panel, PromptBatch, RolloutSource, Sequences, Stat, Step, Writing
from veto_pl.seams.teacher_names import TEACHER
from veto_pl.training.evaluation import Evaluation
from veto_pl.training.normalisation import GradientLedger

SCORING = ("teacher's scoring", "teacher's scoring")
UPDATE = ("student's forward", "loss head")
PHASES = ("rollout", SCORING[0], *UPDATE, "backward", "optimizer step", "validation")
"""The parts of a step, in their order."""

PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    **dict.fromkeys(("32-true", "32"), (None, None)),
    **dict.fromkeys(("64-true", "64"), (torch.float64, None)),
    "bf16-true": (torch.bfloat16, None), "16-true": (torch.float16, None),
    **dict.fromkeys(("bf16-mixed", "bf16"), (None, torch.bfloat16)),
    **dict.fromkeys(("16-mixed", "16"), (None, torch.float16)),
}  # fmt: skip
"""What the student's weights become, and what autocast computes in, by `trainer.precision`."""


@dataclass(frozen=True)
class Setting:
    """What a step's size depends on, beside the models and the objective.

    Args:
        lengths: tokens of each row.
        prompts: of a training batch.
        validation_prompts: of a validation batch; 0 leaves validation out.
        accumulate: micro-batches of an optimizer step.
        precision: as in `trainer.precision`.
        checkpointing: recompute the student's activations, whatever the configuration says.
        chunk_rows: of every objective; None leaves what the configuration says.
        shards: over how many devices gradients are spread.
        accelerator: whether the device works on whole chunks and updates all weights at once.
    """

    lengths: Lengths
    prompts: int
    validation_prompts: int
    accumulate: int = 1
    precision: str = "32-true"
    checkpointing: bool = False
    chunk_rows: int | None = None
    shards: int = 1
    accelerator: bool = False


def gathered_in(setting: Setting) -> int | None:
    """Return the bytes of a number of sharded weights while they are whole; None for as many as their parts have."""
    return 2 if setting.precision in ("bf16-mixed", "bf16") else None


@dataclass(frozen=True)
class Simulated:
    """What a step needs.

    Args:
        student: the student's weights.
        frozen: the weights of the teachers by name, and of the `reference` if there is one.
        state: bytes of the optimizer's state, over all devices.
        phases: the rollouts of an optimizer step, the other parts of one micro-batch, the update, a validation batch.
        reads: bytes of weights that one device reads while it samples for an optimizer step.
    """

    student: Weights
    frozen: Mapping[str, Weights]
    state: int
    phases: dict[str, Phase] = field(default_factory=dict)
    reads: int = 0

    @property
    def models(self) -> dict[str, Weights]:
        """Return the weights of each model by its role, or a teacher's name."""
        return {"student": self.student, **self.frozen}


def simulate(module: DistillationModule, setting: Setting, objective: Objective) -> Simulated:
    """Run an optimizer step on the objective, and a validation batch, without weights.

    Raises:
        ConfigurationError: a model cannot be read, or the step depends on values that are not known before the run.
    """
    if setting.precision not in PRECISIONS:
        raise ConfigurationError(
            f"`trainer.precision` is {setting.precision!r}, which a plan does not know. Plan with one of "
            f"{', '.join(PRECISIONS)}."
        )
    dtype, _ = PRECISIONS[setting.precision]
    models = skeletons(module, dtype, checkpointing=setting.checkpointing)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), as_on_an_accelerator(setting.accelerator):
            return _Simulation(module, setting, models, objective).run()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigurationError(
            f"The step cannot be planned, because it depends on values: {error}. Plan with a similar objective, "
            "rollout or optimizer of the package."
        ) from error
    finally:
        for metric in module.validation_metrics.values():
            metric.reset()  # type: ignore[operator]  # it has seen tensors without values


class _Simulation:
    """A student, a teacher and an optimizer without storage, and what happens to them."""

    def __init__(self, module: DistillationModule, setting: Setting, models: Models, objective: Objective) -> None:
        self.module, self.setting = module, setting
        self.student = without_storage(models.student)
        teachers = {name: without_storage(model) for name, model in models.named_teachers.items()}
        reference = None if models.reference is None else without_storage(models.reference)
        self.frozen = dict(teachers) if reference is None else teachers | {"reference": reference}
        first = teachers.pop(TEACHER, None)
        self.named = (*((TEACHER,) if first is not None else ()), *teachers)
        known = Models(self.student, first, models.tokenizer, reference=reference, teachers=teachers)
        tellers = {name: shape_of(source) for name, source in models.tellers.items()}
        self.models = replace(known, tokenizers=models.tokenizers, tellers=tellers)
        self.trained = [p for p in self.student.parameters() if p.requires_grad]
        self.observation = Observation(setting.shards, self._weights_without_casts())
        plain = without_examples(objective, setting.chunk_rows)
        self.objective = in_own_ids(plain, self.models, setting.lengths, self.observation)
        self.ledger = GradientLedger()

    def run(self) -> Simulated:
        state = self._first_step()
        for model in (self.student, *self.frozen.values()):
            model.observation = self.observation
            model.sample = max(SAMPLE_ROWS, 2 * most_rows(self.objective))
        with self.observation:
            for parameter in self.trained:
                self._set_gradient(parameter)
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self.observation.mark_gradient
                )
            with self._autocast():
                self._roll_out()
            self._update()
            if self.setting.validation_prompts:
                with self._autocast(), self.observation.phase("validation") as phase:
                    self._validate(phase)
        frozen = {role: Weights.of(model, self.student) for role, model in self.frozen.items()}
        return Simulated(Weights.of(self.student), frozen, state, self.observation.phases, self._reads())

    def _weights_without_casts(self) -> list[nn.Parameter]:
        """Return the weights that are gathered in the dtype that they are computed with."""
        if self.setting.shards == 1 or gathered_in(self.setting) is None:
            return []
        return [weight for model in (self.student, *self.frozen.values()) for weight in model.parameters()]

    def _first_step(self) -> int:
        """Take a first step, so that the optimizer's state exists before the observed one. Return its bytes."""
        with Observation() as first:
            self.optimizer = optimizer_of(self.module, self.student, self.setting.accelerator)
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
                first.mark_gradient(parameter)
            self.optimizer.step()
            self.optimizer.zero_grad()
            state: int = first.alive
        return state

    def _set_gradient(self, parameter: nn.Parameter) -> None:
        """Set the gradient of the previous step, which stays until the backward pass of this one."""
        parameter.grad = torch.empty_like(parameter)
        self.observation.mark_gradient(parameter)

    def _autocast(self) -> Any:
        _, dtype = PRECISIONS[self.setting.precision]
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype, cache_enabled=False)

    def _roll_out(self) -> None:
        """Run the rollouts of an optimizer step; where a source chooses between others, the largest choice counts."""
        with self.observation.phase("rollout") as phase:
            for source in self.objective.sources:
                flops, kernels, times = phase.flops, phase.kernels, self._times(source)
                prompts = self.setting.prompts * (self.setting.accumulate // times)
                costs = [(0.0, 0.0)]
                for writing in source.writings():
                    self._write(writing, prompts, phase)
                    costs.append((times * (phase.flops - flops), times * (phase.kernels - kernels)))
                    phase.flops, phase.kernels = flops, kernels
                phase.flops, phase.kernels = flops + max(costs)[0], kernels + max(costs)[1]
            for panel in self.objective.panels:
                for _ in range(self.setting.accumulate):
                    self._say(panel, self.setting.prompts, phase)

    def _say(self, panel: Panel, prompts: int, phase: Phase) -> None:
        """Let teachers write what they say before they read a micro-batch."""
        for writing in panel.writings(self.named):
            self._write(writing, prompts, phase)

    def _write(self, writing: Writing, prompts: int, phase: Phase) -> None:
        records = self.setting.accelerator and self.setting.shards == 1  # sharded weights cannot be recorded
        lengths = replace(self.setting.lengths, prompt=self.setting.lengths.prompt + writing.beside)
        roll_out(writing, self.models, prompts, lengths, phase, accelerator=records)

    def _times(self, source: RolloutSource) -> int:
        """Return how often a source writes for an optimizer step: once, where it does for all micro-batches at once."""
        at_once = self.module.rolls_out_window and not remembers(source)
        return 1 if at_once else self.setting.accumulate

    def _reads(self) -> int:
        """Return the bytes read by sampling: the weights of the sampling models, once for each token of a row.

        In mixed precision those are casts, which a rollout makes once.
        """
        _, computed = PRECISIONS[self.setting.precision]
        weights = {role: Weights.of(model) for role, model in {"student": self.student, **self.frozen}.items()}
        size = {role: (one.cast(2) if computed else one).bytes for role, one in weights.items()}
        read = partial(bytes_read, sizes=size, lengths=self.setting.lengths)
        said = sum(read(writing) for panel in self.objective.panels for writing in panel.writings(self.named))
        chosen = sum(self._times(source) * max(map(read, source.writings())) for source in self.objective.sources)
        return chosen + self.setting.accumulate * said

    def _update(self) -> None:
        """Run the last micro-batch of an accumulation window, and the optimizer step."""
        terms = self._loss()
        if self.setting.accumulate > 1 and len(terms) > 1:
            self._backward(terms)  # an earlier micro-batch leaves a gradient of each term behind
            for name in (SCORING[0], *UPDATE, "backward"):
                self.observation.phases.pop(name, None)
            terms = self._loss()
        self._backward(terms)
        with self.observation.phase("optimizer step"):
            if self.ledger.separate:
                self.ledger.normalise(self.trained, lambda value: value, 1.0)
            self.optimizer.step()

    def _loss(self) -> dict[str, Stat]:
        """Return the undivided terms of the loss; teacher and student count under phases of their own."""
        rollouts = {}
        for source in self.objective.sources:
            rollouts[source] = completed(source, self.setting.prompts, self.setting.lengths)
            self._expect(rollouts[source], self.objective.panels)
        with ExitStack() as stack:
            for context in (
                self.observation.phase("loss head"),
                self._autocast(),
                phases_of(self.student, UPDATE),
                *(phases_of(model, SCORING) for model in self.frozen.values()),
            ):
                stack.enter_context(context)
            terms = dict(self.objective.loss(rollouts, self.models, Step(0, 1)).terms)
        self.ledger.record(terms)
        return terms

    def _expect(self, written: Sequences, panels: Iterable[Panel]) -> None:
        """Let the masks of a rollout, and of what teachers read of it, have the values that they would have."""
        (rows, width), prompt = written.input_ids.shape, self.setting.lengths.prompt
        for beside in {0, *(panel.beside(self.named) for panel in panels)}:
            self.observation.expect((rows, beside + width), beside + prompt)

    def _backward(self, terms: dict[str, Stat]) -> None:
        with self.observation.phase("backward"):
            if self.setting.accumulate > 1 and len(terms) > 1:
                self.ledger.backward(terms, self.trained)
                return
            if self.setting.accumulate == 1:
                self.optimizer.zero_grad()
            total = torch.stack([stat.total for stat in terms.values()]).sum()
            terms.clear()
            total.backward()  # type: ignore[no-untyped-call]

    def _validate(self, phase: Phase) -> None:
        sampling, engine, playing = self.module.evaluation, self.module.answering_engine, self.module.playing
        source = (
            FromStudent(sampling, engine or DecodeLoop()) if playing is None else playing.answering(sampling, engine)
        )
        lengths, prompts = self.setting.lengths, self.setting.validation_prompts
        for writing in source.writings():
            self._write(writing, prompts, phase)
        known = [m for m in self.module.validation_metrics.values() if isinstance(m, TokenMetric) and not m.turn]
        # As a run does: metrics of a turn look at values that are there, and ids of its own cannot be compared.
        metrics = [m for m in known if not (self.models.tokenizers and m.needs_teacher)]
        written = completed(source, prompts, lengths)
        asked = [] if self.module.panel is None else [self.module.panel.planned()]
        for panel in asked:
            self._say(panel, prompts, phase)
        self._expect(written, asked)
        compared = next(iter(asked), None)
        evaluation = Evaluation(cast(PromptBatch, None), written, cast(Generations, None), self.models, panel=compared)
        evaluation.update(metrics)
