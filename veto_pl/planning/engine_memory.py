"""What engines with weights and caches of their own take of a device, in each part of a step."""

from __future__ import annotations

from collections.abc import Iterator

from veto_pl.module import DistillationModule
from veto_pl.planning.simulation import PHASES, PRECISIONS, Setting, Simulated
from veto_pl.seams import Engine

Running = tuple[str, Engine]
"""A model's role, and an engine that runs it: one and the same engine is there once for each model."""


def engine_memory(module: DistillationModule, setting: Setting, simulated: Simulated, memory: int) -> dict[str, int]:
    """Return the bytes that engines have set aside in each part of a step, once all of them have started.

    Args:
        module: with the rollouts and the engine of evaluations.
        setting: whether there is a validation, and what is computed in.
        simulated: the models' sizes.
        memory: bytes of the device.
    """
    used = {"rollout": set(_of_rollouts(module)), "validation": set(_of_validation(module, setting))}
    taken: dict[Running, tuple[int, int]] = {
        (role, engine): engine.set_aside(memory, _bytes(simulated, role, setting))
        for role, engine in set.union(*used.values())
    }
    return {
        phase: sum(awake if one in used.get(phase, ()) else asleep for one, (awake, asleep) in taken.items())
        for phase in PHASES
    }


def _of_rollouts(module: DistillationModule) -> Iterator[Running]:
    for writing in module.objective.writings(tuple(module.teacher_sources)):
        if writing.engine is not None:
            yield from ((role, writing.engine) for role in writing.writers)


def _of_validation(module: DistillationModule, setting: Setting) -> Iterator[Running]:
    if setting.validation_prompts and module.answering_engine is not None:
        yield "student", module.answering_engine


def _bytes(simulated: Simulated, role: str, setting: Setting) -> int:
    weights = simulated.models[role]
    return (weights if PRECISIONS[setting.precision][1] is None else weights.cast(2)).alone
