"""The longest row of a batch that a device has room for."""

from __future__ import annotations

from dataclasses import replace

from veto_pl.core.architectures import text_config
from veto_pl.module import DistillationModule
from veto_pl.planning.run_plan import Plan, plan

TRIES = 5
"""Plans that are made in the search, at most."""

AIM = 0.99
"""The part of the room that a try aims at, so that it fits though memory is not quite a line."""


def longest_row(module: DistillationModule, given: Plan) -> int | None:
    """Return the tokens of the longest row, prompt and completion, with which a run was found to fit; None if none was.

    The completion has the length of the plan and the prompt is varied. Memory is nearly a line in it, so each try is
    where the two plans that are nearest to the device's room point.
    """
    lengths = given.setting.lengths
    completion = lengths.longest or lengths.reference
    positions = getattr(text_config(module.student_source.config()), "max_position_embeddings", None)
    most = max((positions or 2**20) - completion, 1)
    tried, prompt = {lengths.prompt: given}, 2 * lengths.prompt
    while len(tried) <= TRIES and (prompt := min(max(prompt, 1), most)) not in tried:
        setting = replace(given.setting, lengths=replace(lengths, prompt=prompt))
        tried[prompt] = plan(module, setting, given.placement, given.device)
        prompt = _crossing(tried, int(AIM * (given.device.memory - given.device.reserve)))
    return max((prompt + completion for prompt, made in tried.items() if made.fits), default=None)


def _crossing(tried: dict[int, Plan], room: int) -> int:
    """Return the prompt at which the line through the two plans nearest to `room` meets it."""
    near = sorted(tried, key=lambda prompt: abs(tried[prompt].peak.total - room))[:2]
    short, long = sorted(near)
    low, high = tried[short].peak.total, tried[long].peak.total
    return 2 * long if high <= low else int(short + (room - low) * (long - short) / (high - low))
