"""What an objective with phases trains on, one thing after another: a plan is made for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from veto_pl.planning.observation import Phase
from veto_pl.planning.simulation import Simulated
from veto_pl.seams import Objective, Step

STEPS = 100
"""Places of a run that are looked at."""


def stages(objective: Objective) -> list[Objective]:
    """The objectives that are trained on during a run; of those that differ in weights alone, the first."""
    found: dict[str, Objective] = {}
    for index in range(STEPS):
        active = objective.active(Step(index, STEPS))
        found.setdefault(_rolled_out_and_scored(active), active)
    return list(found.values())


def dearest(simulated: Sequence[Simulated]) -> Simulated:
    """Of each part of a step, the simulation that needs most."""
    phases: dict[str, Phase] = {}
    for one in simulated:
        for name, phase in one.phases.items():
            known = phases.get(name, Phase())
            dear = max(known, phase, key=lambda part: part.peak)
            phases[name] = replace(dear, flops=max(known.flops, phase.flops))
    return replace(simulated[0], phases=phases, reads=max(one.reads for one in simulated))


def _rolled_out_and_scored(objective: Objective) -> str:
    terms = getattr(objective, "terms", None)
    if isinstance(terms, Mapping):
        return repr({name: _rolled_out_and_scored(term) for name, term in terms.items()})
    return repr(objective)
