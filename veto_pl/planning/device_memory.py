"""From what a step needs to the memory of each device, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from veto_pl.planning.placement import Placement
from veto_pl.planning.shape_models import Weights
from veto_pl.planning.simulation import PHASES, Simulated


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the largest moment of one part of the step.

    Args:
        phase: the part.
        weights: of all models.
        state: of the optimizer.
        gradients: of the trained parameters, and DDP's copy of them.
        gathered: weights and gradients of sharded models that are whole for a moment.
        rest: activations, caches, logits, and what operations need for themselves.
        engines: what engines with weights and caches of their own have set aside.
    """

    phase: str
    weights: int
    state: int
    gradients: int
    gathered: int
    rest: int
    engines: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.state + self.gradients + self.gathered + self.rest + self.engines


def step_memory(
    simulated: Simulated,
    placement: Placement,
    writers: frozenset[str] = frozenset(),
    gathered_in: int | None = None,
    engines: Mapping[str, int] | None = None,
    offloaded: frozenset[str] = frozenset(),
) -> list[Memory]:
    """Return the memory of each part of a step, in their order.

    Args:
        simulated: a step of one device, with gradients spread as `placement` does.
        placement: how the run is spread.
        writers: the models that sample in training, `student` and `teacher`.
        gathered_in: bytes of a number of sharded weights that are whole; None for as many as their parts have.
        engines: what engines have set aside, by the part of the step.
        offloaded: the frozen models, `teacher` and `reference`, that rest in the memory of the host.
    """
    whole = _as_gathered(simulated, gathered_in)
    resting = {role: model for role, model in simulated.models.items() if role in offloaded}
    weights = sum(model.bytes for role, model in simulated.models.items() if role not in offloaded)
    copies = simulated.student.trained if placement.kind == "ddp" and placement.buckets else 0
    return [
        Memory(
            phase=name,
            weights=(weights + _present(name, resting, writers)) // placement.shards,
            state=simulated.state // placement.shards,
            gradients=part.gradients + copies,
            gathered=_gathered(name, whole, placement, writers, gathered_in) if placement.shards > 1 else 0,
            # An optimizer's temporaries are as large as the parts of the weights that it updates.
            rest=part.rest // (placement.shards if name == "optimizer step" else 1),
            engines=(engines or {}).get(name, 0),
        )
        for name in PHASES
        if (part := simulated.phases.get(name)) is not None
    ]


def _present(phase: str, resting: Mapping[str, Weights], writers: frozenset[str]) -> int:
    """Return the bytes of offloaded models that are on the device in a phase; they score one after another."""
    whole = {role: model.bytes for role, model in resting.items()}
    if phase == "rollout":
        return sum(size for role, size in whole.items() if role in writers)
    if phase in ("teacher's scoring", "validation"):
        return max(whole.values(), default=0)
    if phase in ("student's forward", "loss head"):  # at most what is outside of the layers
        return sum(model.outer for role, model in resting.items() if role == "teacher")
    return 0


def _as_gathered(simulated: Simulated, size: int | None) -> Simulated:
    """Return the models as they are while they are whole."""
    if size is None:
        return simulated
    frozen = {role: weights.cast(size) for role, weights in simulated.frozen.items()}
    return replace(simulated, student=simulated.student.cast(size), frozen=frozen)


def _gathered(
    phase: str, simulated: Simulated, placement: Placement, writers: frozenset[str], gathered_in: int | None
) -> int:
    """Return the bytes of sharded weights and gradients that are whole at the peak of a phase.

    They are the outer weights, the layer at work and the next one; in a rollout, all weights of a model that
    `placement` gathers.
    """
    student = simulated.student
    scored = max(map(_layer_by_layer, simulated.frozen.values()), default=0)
    teachers = {role: weights for role, weights in simulated.frozen.items() if role != "reference"}
    heads = sum(weights.outer for weights in teachers.values())  # all of them are whole at once

    def sampling(roles: Mapping[str, Weights], whole: bool) -> int:
        """Return what the largest of those that write takes: teachers write one after another."""
        sizes = (w.bytes if whole else _layer_by_layer(w) for role, w in roles.items() if role in writers)
        return max(sizes, default=0)

    whole, sums = placement.gather_student, 1 if gathered_in is None else 4 // gathered_in
    amounts: dict[str, Callable[[], int]] = {
        "rollout": lambda: sampling({"student": student}, whole) + sampling(teachers, placement.gather_teacher),
        "teacher's scoring": lambda: scored,
        "student's forward": lambda: _layer_by_layer(student) + heads,
        "loss head": lambda: _layer_by_layer(student) + heads,
        # A layer's gradients are whole, and once more in the buffer that is summed over the ranks, which is float32.
        "backward": lambda: student.outer + max((3 + sums) * student.layer, (1 + sums) * student.outer),
        "validation": lambda: max(
            [student.bytes if whole else _layer_by_layer(student), *map(_layer_by_layer, teachers.values())]
        ),
    }
    return amounts[phase]() if phase in amounts else 0


def _layer_by_layer(weights: Weights) -> int:
    return weights.outer + 2 * weights.layer
