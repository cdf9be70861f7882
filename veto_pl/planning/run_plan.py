"""A plan: what a configuration needs on a device, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from veto_pl.functional.chunk_size import fewest_rows
from veto_pl.module import DistillationModule
from veto_pl.planning.arithmetic import SHARE, Work, step_work
from veto_pl.planning.device_memory import Memory, step_memory
from veto_pl.planning.devices import Device
from veto_pl.planning.engine_memory import engine_memory
from veto_pl.planning.placement import Placement
from veto_pl.planning.simulation import Setting, Simulated, gathered_in, simulate
from veto_pl.planning.stages import combine_peaks, stages
from veto_pl.seams.teacher_names import TEACHER

FEW_ROWS = 64
"""Rows of a chunk of the loss head that still make products of a useful size."""


@dataclass(frozen=True)
class Plan:
    """What one device needs.

    Args:
        setting: sizes of a step.
        placement: how the run is spread.
        device: what it runs on.
        simulated: what was found out about a step.
        memory: part by part.
        work: part by part.
        offloaded: the frozen models that rest in the memory of the host between uses.
    """

    setting: Setting
    placement: Placement
    device: Device
    simulated: Simulated
    memory: tuple[Memory, ...]
    work: tuple[Work, ...]
    offloaded: frozenset[str] = frozenset()

    @property
    def peak(self) -> Memory:
        """The part that needs most."""
        return max(self.memory, key=lambda part: part.total)

    @property
    def fits(self) -> bool:
        """Whether the device has room for it, beside what a run cannot have."""
        return self.peak.total + self.device.reserve <= self.device.memory


def plan(
    module: DistillationModule, setting: Setting, placement: Placement, device: Device, share: float = SHARE
) -> Plan:
    """Plan a run without loading any weights.

    Args:
        module: models, objective, optimizer and evaluation.
        setting: sizes of a step.
        placement: how the run is spread.
        device: what it runs on.
        share: the part of the device's peak that is reached.

    Raises:
        ConfigurationError: a model cannot be read, or the step cannot be planned.
    """
    setting = replace(setting, shards=placement.shards, accelerator=device.accelerator)
    simulated = combine_peaks([simulate(module, setting, objective) for objective in stages(module.objective)])
    named = tuple(module.teacher_sources)
    writers = frozenset(role for writing in module.objective.writings(named) for role in writing.writers)
    given = {TEACHER: module.model_sources.get(TEACHER), "reference": module.reference_source}
    offloaded = frozenset(role for role, source in given.items() if source is not None and source.offloads)
    engines = engine_memory(module, setting, simulated, device.memory)
    return Plan(
        setting,
        placement,
        device,
        simulated,
        tuple(step_memory(simulated, placement, writers, gathered_in(setting), engines, offloaded)),
        tuple(step_work(simulated, setting, device, share)),
        offloaded,
    )


@dataclass(frozen=True)
class Remedy:
    """A change that makes a run fit.

    Args:
        change: the options to set.
        plan: of the run with them.
    """

    change: str
    plan: Plan


def remedies(module: DistillationModule, given: Plan) -> list[Remedy]:
    """Return the changes that suffice alone; if there are none, all of them together, or nothing if those fail."""
    found: list[Remedy] = []
    for change, setting, placement in _changes(module, given):
        if placement == given.placement or not any(r.plan.placement != given.placement for r in found):
            _keep_if_it_fits(found, change, plan(module, setting, placement, given.device))
    if (smaller := _smaller_batches(module, given)) is not None:
        found.insert(0, smaller)
    if not found:
        change, setting, placement = _together(module, given)
        _keep_if_it_fits(found, change, plan(module, setting, placement, given.device))
    return found


def _keep_if_it_fits(found: list[Remedy], change: str, candidate: Plan) -> None:
    if candidate.fits:
        found.append(Remedy(change, candidate))


def _smaller_batches(module: DistillationModule, given: Plan) -> Remedy | None:
    """Return the largest batch that fits, with as many prompts per optimizer step, or None if none fits."""
    divisor, remedy = 2, None
    while remedy is None and divisor <= max(given.setting.prompts, given.setting.validation_prompts):
        change, setting = _divided(given.setting, divisor)
        candidate = plan(module, setting, given.placement, given.device)
        if candidate.fits:
            remedy = Remedy(change, candidate)
        divisor *= 2
    return remedy


def _divided(setting: Setting, divisor: int) -> tuple[str, Setting]:
    prompts = max(setting.prompts // divisor, 1)
    accumulate = setting.accumulate * -(-setting.prompts // prompts)
    validation = -(-setting.validation_prompts // divisor)
    change = f"--data.batch_size {prompts} --trainer.accumulate_grad_batches {accumulate}"
    if validation:
        change += f" --data.validation_batch_size {validation}"
    return change, replace(setting, prompts=prompts, validation_prompts=validation, accumulate=accumulate)


def _changes(module: DistillationModule, given: Plan) -> Iterator[tuple[str, Setting, Placement]]:
    setting, placement = given.setting, given.placement
    if not setting.checkpointing and getattr(module.student_source, "gradient_checkpointing", None) is False:
        yield "--model.student.gradient_checkpointing true", replace(setting, checkpointing=True), placement
    if fewest_rows(getattr(module.objective, "chunk_rows", 0)) > FEW_ROWS:
        yield f"--model.objective.chunk_rows {FEW_ROWS}", replace(setting, chunk_rows=FEW_ROWS), placement
    if placement.kind == "fsdp2":
        return
    if placement.ranks > 1:
        yield "--trainer.strategy fsdp2", setting, placement.sharded()
    else:
        for ranks in (2, 4, 8):
            change = f"--trainer.strategy fsdp2 --trainer.devices {ranks}"
            yield change, setting, replace(placement, ranks=ranks).sharded()


def _together(module: DistillationModule, given: Plan) -> tuple[str, Setting, Placement]:
    """Return all changes together, as options, setting and placement: one prompt at a time, on most devices."""
    first, setting = _divided(given.setting, given.setting.prompts)
    placement, options = given.placement, {"batch": first}
    for option, changed, spread in _changes(module, given):
        setting = replace(
            setting,
            checkpointing=setting.checkpointing or changed.checkpointing,
            chunk_rows=changed.chunk_rows or setting.chunk_rows,
        )
        if spread != given.placement:
            placement = spread
        options[option.split()[0]] = option
    return " ".join(options.values()), setting, placement
