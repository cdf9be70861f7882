"""Distillation of agents in `House`: whole episodes, the first turns first (TCOD), and the last turns first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trajectories_runs import Finished, Look, Looks, Seen, Size, dialogue, distilled, imitated, looked_at, tokenizer_of

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.core.laws import Law
from veto_pl.environments import House
from veto_pl.environments.house import ROOMS, THINGS, WAYS
from veto_pl.functional.divergences import reverse_kl
from veto_pl.objectives import OPD, TCOD
from veto_pl.parts.schedules import Staircase
from veto_pl.rollouts import Played, Sampling
from veto_pl.seams import Episode, Example, Objective, Task

TURNS = 10
ARMS = ("OPD", "front to back", "back to front")
LONGEST, TURN = 100, Sampling(temperature=1.0, max_new_tokens=4)
WHOLE = Played(House(), TURN, max_turns=TURNS, max_tokens=LONGEST)


@dataclass(frozen=True)
class Sizes:
    """How large the study is.

    Args:
        teacher: of all seeds.
        student: each seed has its own.
        budget: turns of the student in a run.
        every: turns between two looks.
        held_out: episodes of a look.
        batch: episodes of an update.
        rise: updates between two depths of the curriculum.
        rate: of AdamW in distillation.
    """

    teacher: Size = Size(width=48, steps=250, rows=1000)
    student: Size = Size(width=48, steps=55, rows=300)
    budget: int = 4_000
    every: int = 1_000
    held_out: int = 64
    batch: int = 12
    rise: int = 3
    rate: float = 4e-3


@dataclass(frozen=True)
class Routes(Task):
    """Levels of the house, each with the expert's route: what to do turn by turn, as long as nothing goes wrong.

    Args:
        train: rows to train on.
        validation: rows to look at.
        test: more of them.
        first: the level of the first training row.
        shown: whether rows are whole dialogues of the expert.
    """

    train: int = 10_000
    validation: int = 100
    test: int = 1
    first: int = 0
    shown: bool = False

    laws = Task.laws - {Law.SPLITS_ARE_APART}

    def load(self, split: str) -> Sequence[Example]:
        start = {"train": self.first, "validation": 1 << 30, "test": 1 << 31}[split]
        levels = range(start, start + getattr(self, split))
        return [expert(level) if self.shown else Example(route(level), row={"level": level}) for level in levels]

    def reward(self, example: Example, completion: str) -> float:
        return 0.0


def visit(level: int) -> Episode:
    return House().begin(Example("", row={"level": level}), 0)


def route(level: int) -> str:
    """What the expert does turn by turn, a word each: `west`, `take`; `nothing` once the wish is fulfilled."""
    episode, said = visit(level), []
    while (turn := episode.expert()) is not None:
        said.append(turn.removeprefix("go ").split()[0])
        episode.reply({"role": "assistant", "content": turn})
    return " ".join([*said, *["nothing"] * (TURNS - len(said))])


def expert(level: int) -> Example:
    """The whole dialogue of the expert."""
    episode = visit(level)
    said = [{"role": "user", "content": f"{route(level)}\n\n{episode.opening[0]['content']}"}]
    while (turn := episode.expert()) is not None:
        said.append({"role": "assistant", "content": turn})
        said += episode.reply(said[-1]).messages
    return dialogue(said, range(1, len(said), 2), level=level)


def tokenizer():
    """Words that nobody needs who has a route are none: the agent reads where it is and what it carries."""
    words = [*ROOMS, *THINGS, *WAYS, "go", "take", "drop", "Bring", "carry", "nothing"]
    left_out = {r"\([^)]*\)|[:,.]|You see[^.]*\.|That is not possible\.|\b(You|are|in|the|to|a)\b": ""}
    return tokenizer_of(words, r"\w+|<eos>|\S", left_out, spaced=True)


def objective(arm: str, rise: int) -> Objective:
    if arm == "OPD":
        return OPD(rollout=WHOLE, aggregation="turn")
    begin_at = "front" if arm == "front to back" else "back"
    return TCOD(
        environment=House(),
        sampling=TURN,
        max_turns=TURNS,
        max_tokens=LONGEST,
        depth=Staircase(1, rise),
        begin_at=begin_at,
    )


def look_of(rows: list[Example]) -> Look:
    """Return how the episodes of these rows are looked at."""

    def look(module: DistillationModule, data: PromptDataModule) -> dict[str, Any]:
        seen = Seen.of(module, data, WHOLE, rows, seed=10**6)
        kl, tokens = seen.turns(reverse_kl(seen.student, seen.teacher), TURNS)
        played = (tokens > 0).sum(0)
        found = {"success": seen.rows.rewards.mean(), "kl": kl.sum(1).mean()}
        found |= {"failed": seen.rows.failed_turns.sum() / played.sum()}
        return {name: float(value) for name, value in found.items()} | {"by_turn": (kl.sum(0) / played).tolist()}

    return look


def run(done: Finished, folder: Path, seeds: Sequence[int], sizes: Sizes) -> None:
    """Run what is missing."""
    words, look = tokenizer(), look_of(Routes(validation=sizes.held_out).load("validation"))
    teacher = imitated(folder / "house-teacher", sizes.teacher, words, Routes(sizes.teacher.rows, shown=True), seed=0)
    done.add("house", "teacher", 0, lambda: looked_at(objective("OPD", sizes.rise), teacher, Routes(), look))
    for seed in seeds:
        shown = Routes(sizes.student.rows, first=10**6 * (seed + 1), shown=True)
        student = imitated(folder / f"house-student-{seed}", sizes.student, words, shown, seed=seed + 1)
        how = {"rate": sizes.rate, "batch": sizes.batch, "seed": seed}
        for arm in ARMS:
            looks, task = Looks(look, sizes.every, sizes.budget), Routes(first=10**8 * (seed + 1))
            learns = partial(distilled, objective(arm, sizes.rise), student, teacher, task, looks, **how)
            done.add("house", arm, seed, learns)
