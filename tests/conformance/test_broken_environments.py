"""The laws of environments can fail: each is broken by somebody, who is reported."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from veto_pl.environments import Abacus, House
from veto_pl.seams import Environment, Episode, Reply
from veto_pl.testing import test_environments as laws

COUNT = iter(range(10**9))
SAID = ({"role": "user", "content": "no"},)


@dataclass(frozen=True)
class _Environment(Environment):
    """Says and is worth what it is told."""

    say: Callable = lambda turn: Reply(SAID)
    worth: Callable = lambda: None
    knows: Callable = lambda: None
    told: tuple = ()

    def begin(self, example, seed):
        return _Episode(self)

    @property
    def tools(self):
        return self.told


class _Episode(Episode):
    def __init__(self, environment):
        self.environment = environment

    def reply(self, turn):
        return self.environment.say(turn)

    def reward(self):
        return self.environment.worth()

    def expert(self):
        return self.environment.knows()


SEEDS, TURNS = laws.test_equal_seeds_give_equal_episodes, laws.test_no_turn_breaks_an_episode
REWARD, EXPERT = laws.test_a_reward_is_a_number_or_none, laws.test_an_expert_succeeds
TOOLS, GLOBAL = laws.test_tools_are_json_schemas, laws.test_the_global_generators_are_left_alone


def silent(turn):
    return Reply()


BROKEN = [
    (SEEDS, "Equal seeds must give equal episodes", _Environment(lambda turn: Reply(SAID * (next(COUNT) % 7 + 1)))),
    (SEEDS, "Equal seeds must give equal episodes", _Environment(silent, lambda: random.random())),
    (TURNS, "must return a `Reply`, got None", _Environment(lambda turn: None)),
    (TURNS, "must have a text as `content`", _Environment(lambda turn: Reply(({"role": "tool", "content": 3},)))),
    (TURNS, "must have a `role`", _Environment(lambda turn: Reply(({"role": None, "content": ""},)))),
    (REWARD, "finite number or None, got nan", _Environment(worth=lambda: float("nan"))),
    (EXPERT, "must come to an end", _Environment(knows=lambda: "on")),
    (EXPERT, "must succeed, got the reward 0.0", _Environment(silent, lambda: 0.0, lambda: "on")),
    (TOOLS, "of the type `function`", _Environment(told=({"type": "x"},))),
    (TOOLS, "must say more", _Environment(told=({"type": "function", "function": {"name": "f"}},))),
    (GLOBAL, "were used", _Environment(lambda turn: Reply(SAID * (random.random() < 2)))),
]


@pytest.mark.parametrize(("law", "message", "environment"), BROKEN, ids=[law.__name__ for law, *_ in BROKEN])
def test_who_breaks_a_law_is_reported(law, message, environment):
    with pytest.raises(AssertionError, match=message):
        law(environment)


@pytest.mark.parametrize("environment", [House(), Abacus(), _Environment()], ids=["house", "abacus", "own"])
@pytest.mark.parametrize("law", {law: None for law, *_ in BROKEN}, ids=lambda law: law.__name__)
def test_who_plays_well_is_not(law, environment):
    law(environment)


def test_each_law_is_broken_by_somebody():
    assert {law for law, *_ in BROKEN} == {law for name, law in vars(laws).items() if name.startswith("test_")}
