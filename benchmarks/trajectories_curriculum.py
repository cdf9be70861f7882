"""What the studies of a curriculum share: the arms, and what is seen of held-out episodes."""

from __future__ import annotations

from typing import Any

from trajectories_runs import Look, Seen

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.functional.divergences import reverse_kl
from veto_pl.objectives import OPD, TCOD
from veto_pl.parts.schedules import Staircase
from veto_pl.rollouts import Played
from veto_pl.seams import Example, Objective

ARMS = ("OPD", "front to back", "back to front")


def arms_of(whole: Played, rise: int) -> dict[str, Objective]:
    """Whole episodes, and those whose depth rises by a turn every so many updates, from either side."""
    front, back = (
        TCOD(
            environment=whole.environment,
            sampling=whole.sampling,
            max_turns=whole.max_turns,
            max_tokens=whole.max_tokens,
            depth=Staircase(1, rise),
            begin_at=side,
        )
        for side in ("front", "back")
    )
    return dict(zip(ARMS, (OPD(rollout=whole, aggregation="turn"), front, back), strict=True))


def look_of(whole: Played, rows: list[Example]) -> Look:
    """Return how the episodes of these rows are looked at."""

    def look(module: DistillationModule, data: PromptDataModule) -> dict[str, Any]:
        seen = Seen.of(module, data, whole, rows, seed=10**6)
        kl, tokens = seen.turns(reverse_kl(seen.student, seen.teacher), whole.max_turns)
        played = (tokens > 0).sum(0)
        found = {"success": (seen.rows.rewards == 1).float().mean(), "kl": kl.sum(1).mean()}
        found |= {"failed": seen.rows.failed_turns.sum() / played.sum()}
        return {name: float(value) for name, value in found.items()} | {"by_turn": (kl.sum(0) / played).tolist()}

    return look
