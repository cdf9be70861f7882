"""A plan on the terminal, and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from veto_pl.planning.device_memory import Memory
from veto_pl.planning.devices import GIB
from veto_pl.planning.run_plan import Plan, Remedy
from veto_pl.planning.shape_models import Weights

PARTS = {
    "weights": "weights", "state": "optimizer", "gradients": "gradients", "gathered": "gathered", "rest": "rest",
    "engines": "engines",
}  # fmt: skip
MEMORY_UNITS = (("GiB", GIB), ("MiB", 2**20))
WORK_UNITS = (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))


def memory_table(plan: Plan) -> Table:
    """Return a table of the memory of each part of a step; the largest is marked."""
    unit, scale = _unit(plan.peak.total, MEMORY_UNITS)
    told = {"gathered": plan.placement.shards > 1, "engines": any(part.engines for part in plan.memory)}
    shown = [name for name in PARTS if told.get(name, True)]
    table = _table(f"memory per device, {unit}", *(PARTS[name] for name in shown), "total")
    for part in plan.memory:
        amounts = [*(getattr(part, name) for name in shown), part.total]
        peak = part is plan.peak
        cells = [f"{amount / scale:.2f}" for amount in amounts]
        table.add_row(("* " if peak else "  ") + part.phase, *cells, style="bold" if peak else "")
    return table


def work_table(plan: Plan) -> Table:
    """Return a table of the work of each part of an optimizer step, and their sum."""
    whole = sum(part.flops for part in plan.work)
    unit, scale = _unit(whole, WORK_UNITS)
    timed = all(part.seconds is not None for part in plan.work)
    table = _table("arithmetic of an optimizer step", unit, *(["seconds"] if timed else []))
    rows = [(part.phase, part.flops, part.seconds) for part in plan.work if part.flops]
    rows.append(("all", whole, sum(part.seconds or 0.0 for part in plan.work)))
    for name, flops, seconds in rows:
        table.add_row(f"  {name}", f"{flops / scale:.2f}", *([f"{seconds:.3g}"] if timed else []))
    return table


def summary(plan: Plan) -> list[str]:
    """Return lines on what was planned, and whether it fits."""
    setting, device = plan.setting, plan.device
    lengths = setting.lengths
    rests = {role: " (offloaded)" if role in plan.offloaded else "" for role in _models(plan)}
    named = [f"{role} {_millions(w)}{rests[role]}" for role, w in _models(plan).items() if w is not None]
    reading = [f"{role} {w.images / 1e6:.1f}M" for role, w in _models(plan).items() if w is not None and w.images]
    images = f"{', '.join(reading)} of it read images: counted are these weights, not what a row's images take."
    verdict = "It fits." if plan.fits else "It does not fit."
    reserve = f" {size(device.reserve)} of it are not the run's." if device.reserve else ""
    return [
        f"{', '.join(named)}; {setting.precision}; {plan.placement.kind}, {plan.placement.ranks} device(s); "
        f"{setting.prompts} prompts a batch, {setting.accumulate} batch(es) a step; "
        f"{lengths.prompt} prompt tokens, {lengths.longest or lengths.reference} completion tokens",
        *([images] if reading else []),
        f"peak {size(plan.peak.total)} (*, {plan.peak.phase}); {device.name} has {size(device.memory)}.{reserve} "
        f"{verdict}",
    ]


def remedy_lines(found: Sequence[Remedy]) -> list[str]:
    """Return lines on the changes that would make it fit."""
    if not found:
        return ["Nothing that was tried makes it fit. Use smaller models, shorter texts or a larger device."]
    return ["Enough by itself:", *(f"  {remedy.change}  (peak {size(remedy.plan.peak.total)})" for remedy in found)]


def longest_row_line(plan: Plan, tokens: int | None) -> str:
    """Return a line on the longest row that was found to fit."""
    completion = plan.setting.lengths.longest or plan.setting.lengths.reference
    if tokens is None:
        return f"No prompt is short enough beside a completion of {completion} tokens."
    return f"Longest row that fits: {tokens} tokens, {completion} of them the completion's."


def as_json(plan: Plan, found: Sequence[Remedy]) -> dict[str, Any]:
    """Return the plan as values for JSON, in bytes, floating-point operations and seconds."""
    return {
        "device": {"name": plan.device.name, "memory": plan.device.memory, "reserve": plan.device.reserve},
        "setting": asdict(plan.setting),
        "placement": asdict(plan.placement),
        "offloaded": sorted(plan.offloaded),
        "models": {role: weights and asdict(weights) for role, weights in _models(plan).items()},
        "memory": [_memory(part) for part in plan.memory],
        "work": [asdict(part) for part in plan.work],
        "peak": _memory(plan.peak),
        "fits": plan.fits,
        "remedies": [{"change": remedy.change, "peak": remedy.plan.peak.total} for remedy in found],
    }


def _models(plan: Plan) -> dict[str, Weights | None]:
    """Return the weights of each model; what a run has none of says None."""
    return {"student": None, "teacher": None, "reference": None} | plan.simulated.models


def size(count: float) -> str:
    """Return a number of bytes as text in GiB or MiB.

    Example:
        >>> size(3 * 2**30), size(1536 * 2**10), size(100)
        ('3.00 GiB', '1.50 MiB', '0.00 MiB')
    """
    unit, scale = _unit(count, MEMORY_UNITS)
    return f"{count / scale:.2f} {unit}"


def _unit(largest: float, units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """Return the first unit that is at most `largest`, or else the last, which is the smallest."""
    return next((unit for unit in units if largest >= unit[1]), units[-1])


def _table(title: str, *columns: str) -> Table:
    table = Table(title, *columns, box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _memory(part: Memory) -> dict[str, Any]:
    return asdict(part) | {"total": part.total}


def _millions(weights: Weights) -> str:
    return f"{weights.parameters / 1e6:.1f}M parameters"
