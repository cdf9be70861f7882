"""Distillation of agents in `House`: whole episodes, the first turns first (TCOD), and the last turns first."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from trajectories_curriculum import arms_of, look_of
from trajectories_runs import Size, dialogue, tokenizer_of
from trajectories_study import Study

from veto_pl.environments import House
from veto_pl.environments.house import ROOMS, THINGS, WAYS
from veto_pl.rollouts import Played, Sampling
from veto_pl.seams import Episode, Example

TURNS, RISE = 10, 3
WHOLE = Played(House(), Sampling(temperature=1.0, max_new_tokens=4), max_turns=TURNS, max_tokens=100)


def study(_: Path) -> Study:
    """Levels of the house, each with the expert's route: what to do turn by turn, as long as nothing goes wrong."""
    return Study(
        "house", tokenizer(), expert, expert, asked, arms_of(WHOLE, RISE), partial(look_of, WHOLE),
        teacher=Size(width=48, steps=250, rows=1000), student=Size(width=48, steps=55, rows=300),
        room=128, batch=12, rate=4e-3, held_out=64, budget=4_000, every=1_000,
    )  # fmt: skip


def asked(level: int) -> Example:
    return Example(route(level), row={"level": level})


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
