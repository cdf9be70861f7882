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
    """Return the objectives that a run trains on; of those that differ in their weights alone, the first."""
    found: dict[str, Objective] = {}
    for index in range(STEPS):
        active = objective.active(Step(index, STEPS))
        found.setdefault(_text_without_weights(active), active)
    return list(found.values())


def combine_peaks(simulated: Sequence[Simulated]) -> Simulated:
    """Return a simulation that combines the largest of each part of a step."""
    phases: dict[str, Phase] = {}
    for one in simulated:
        for name, phase in one.phases.items():
            known = phases.get(name, Phase())
            larger = max(known, phase, key=lambda part: part.peak)
            phases[name] = replace(larger, flops=max(known.flops, phase.flops))
    return replace(simulated[0], phases=phases, reads=max(one.reads for one in simulated))


def _text_without_weights(objective: Objective) -> str:
    terms = getattr(objective, "terms", None)
    if isinstance(terms, Mapping):
        return repr({name: _text_without_weights(term) for name, term in terms.items()})
    return repr(objective)
