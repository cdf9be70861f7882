"""Distillation of agents in TextWorld: whole episodes, the first turns first (TCOD), and the last turns first."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from string import ascii_uppercase

from trajectories_curriculum import arms_of, look_of
from trajectories_runs import Size, dialogue, tokenizer_of
from trajectories_study import HELD_OUT, Study

from veto_pl.environments import TextWorld
from veto_pl.rollouts import Played, Sampling
from veto_pl.seams import Episode, Example

QUESTS, ROOMS, THINGS, TURNS, RISE = (3, 4, 5), 2, 3, 7, 2
KINDS = "box", "door", "key", "room", "snack", "stand", "thing"
TRAINING, FRESH = 600, 100
"""Games to learn from, and others to look at."""
SLIP = 0.15
"""The share of the turns that go wrong in what the teacher imitates; what it imitates is how to go on."""


def study(folder: Path) -> Study:
    """Games in the folder `games` there, which are made where they are missing."""
    make_games(folder / "games")
    world = TextWorld(str(folder / "games" / "*.json"))
    whole = Played(world, Sampling(temperature=1.0, max_new_tokens=6), max_turns=TURNS, max_tokens=192)
    return Study(
        "textworld", tokenizer(), partial(expert, world, slips=SLIP), partial(expert, world, slips=0.0), asked,
        arms_of(whole, RISE), partial(look_of, whole),
        teacher=Size(width=64, steps=300, rows=2000), student=Size(width=64, steps=180, rows=1000),
        room=256, batch=24, rate=5e-4, held_out=FRESH, budget=3_000, every=1_500,
    )  # fmt: skip


def make_games(folder: Path) -> None:
    """Make games of three to five commands, whose names are those of TextWorld's basic theme, such as `thing7`."""
    import textworld
    from textworld.generator import KnowledgeBase, make_game

    folder.mkdir(parents=True, exist_ok=True)
    rules, names = KnowledgeBase.load(), [f"{kind}{number:02d}" for kind in KINDS for number in range(100)]
    for number in range(TRAINING + FRESH):
        file = folder / f"{number:04d}.json"
        if not file.exists():
            options = textworld.GameOptions()
            options.nb_rooms, options.nb_objects, options.seeds, options.kb = ROOMS, THINGS, number, rules
            options.quest_length, options.grammar.theme = QUESTS[number % len(QUESTS)], "basic"
            options.grammar.names_to_exclude = names  # so those with one digit are left
            make_game(options).save(str(file))


def asked(number: int) -> Example:
    """A game to learn from, or a fresh one; the environment says what there is to do."""
    level = TRAINING + (number - HELD_OUT) % FRESH if number >= HELD_OUT else number % TRAINING
    return Example("Play", row={"level": level})


def begun(world: TextWorld, number: int) -> Episode:
    return world.begin(asked(number), 0)


def expert(world: TextWorld, number: int, slips: float) -> Example:
    """A dialogue of the expert, with some turns that go wrong: commands too early or again, or a step astray."""
    draws, episode, own = random.Random(-1 - number), begun(world, number), []
    wild = [*route(world, number), *(f"go {way}" for way in ("north", "south", "west", "east"))]
    said = [{"role": "user", "content": f"Play\n\n{episode.opening[0]['content']}"}]
    while (turn := episode.expert()) is not None and len(said) < 2 * TURNS:
        astray = draws.random() < slips
        if not astray:
            own.append(len(said))
        said.append({"role": "assistant", "content": draws.choice(wild) if astray else turn})
        said += episode.reply(said[-1]).messages
    episode.close()
    return dialogue(said, own, **asked(number).row)


def route(world: TextWorld, number: int) -> list[str]:
    """What the expert does if nothing goes wrong."""
    episode, said = begun(world, number), []
    while (turn := episode.expert()) is not None:
        said.append(turn)
        episode.reply({"role": "assistant", "content": turn})
    episode.close()
    return said


def tokenizer():
    """A name is a word; sentences are read without the words that fill them."""
    names = [f"{kind}{number}" for kind in KINDS for number in range(10)]
    pairs = [f"{letter}-{kind}" for kind in ("box", "door", "key") for letter in ascii_uppercase]
    ways = [way for one in ("north", "south", "west", "east") for way in (one, one.capitalize())]
    verbs = "go", "take", "open", "close", "lock", "unlock", "insert", "put", "drop", "eat"
    rest = "in", "on", "into", "from", "with", "through", "see", "carry", "nothing", "closed", "locked", "impossible"
    left_out = {
        r"That is not possible\.": "impossible",
        r"[().,:]|\b(First|Next|You|are|is|the|edible)\b": "",
    }
    return tokenizer_of([*names, *pairs, *ways, *verbs, *rest, "Play"], r"[\w-]+|<eos>|\S", left_out, spaced=True)
