"""Environments of Gymnasium, of the real package, as environments of agents."""

import pytest

from tests.environments.test_environments import turn
from veto_pl.environments import Gymnasium
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example, Reply

CORRIDOR, WAYS = "tests.environments.text_games:Corridor-v0", ("back", "go on", "jump")


def begun(seed=0, row=None, **settings):
    given = {"id": CORRIDOR, "actions": WAYS, **settings}
    return Gymnasium(**given).begin(Example("Go.", row=row or {}), seed)


def said(text):
    return ({"role": "user", "content": text},)


@pytest.mark.parametrize("options", [{}, {"start": 7}])
def test_actions_have_names_and_rewards_add_up(options):
    episode = begun(row={"level": 3}, options=options)
    place = int(episode.opening[0]["content"][-2])
    assert episode.opening == said(f"You are at {place}.")
    steps = 0
    for step in range(place + 1, 4):
        assert episode.reply(turn("I think.\n Go  ON \n")) == Reply(said(f"You are at {step}."))
        steps += 1
    assert episode.reply(turn("go on")) == Reply(said("You are at 4."), done=True)
    assert episode.reward() == 1.25 - 0.125 * steps
    episode.close()
    assert episode.game.unwrapped.closed


def test_a_level_is_the_same_episode_for_every_seed():
    openings = {seed: [begun(seed, {"level": level}).opening for level in range(9)] for seed in (0, 1)}
    assert openings[0] == openings[1]
    assert len({str(opening) for opening in openings[0]}) > 1
    assert len({str(begun(seed).opening) for seed in range(9)}) > 1


@pytest.mark.parametrize("text", ["fly", "", "go on then", "1", "go on\nor not", "\ud83d \x00"])
def test_what_is_no_action_is_a_failed_turn_and_nothing_moves(text):
    episode = begun(5)
    before = episode.opening[0]["content"]
    reply = episode.reply(turn(text))
    assert (reply.failed, reply.done) == (True, False)
    assert reply.messages[0]["content"].endswith("is not possible. The actions are back, go on, jump.")
    assert episode.game.unwrapped.seen() == before
    assert episode.reward() == 0


def test_an_entry_of_a_mapping_is_read():
    opening = begun(options={"shape": "mapping"}, entry="mission").opening
    assert opening[0]["content"].startswith("You are at")


def test_actions_may_be_texts():
    episode = begun(id="tests.environments.text_games:Echo-v0", actions=())
    assert episode.opening == said("Say something.")
    assert episode.reply(turn("Hello")) == Reply(said("Hello"))
    assert episode.reply(turn("x" * 21)).failed
    assert episode.reply(turn("There")) == Reply(said("There"), done=True)
    assert episode.reward() == 1


def test_what_is_rendered_as_text_is_read():
    lake = begun(
        id="FrozenLake-v1",
        actions=("left", "down", "right", "up"),
        options={"render_mode": "ansi", "is_slippery": False},
    )
    assert "SFFF" in lake.opening[0]["content"].replace("\x1b[41mS\x1b[0m", "S")
    for way in ("down", "down", "right", "right", "down", "right"):
        reply = lake.reply(turn(way))
    assert reply.done
    assert lake.reward() == 1


def test_a_step_that_raises_is_left_to_the_rollout():
    """`Played` makes a failed turn of it, and ends the episode."""
    with pytest.raises(RuntimeError, match="The floor breaks"):
        begun().reply(turn("jump"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "Corridors-v0"}, r"`Gymnasium.id`: given `Corridors-v0`, expected an environment that Gymnasium knows"),
        ({"id": "no_such_package:Corridor-v0"}, r"No module named 'no_such_package'"),
        ({"actions": ("on",)}, r"`Gymnasium.actions`: given 1 names, expected the names of 3 actions"),
        ({"actions": ("on", "On", "back")}, r"given 2 names, expected the names of 3 actions"),
        ({"actions": ()}, r"given 0 names, expected the names of 3 actions"),
        ({"id": "tests.environments.text_games:Echo-v0"}, r"given 3 names, expected none, and actions that are texts"),
        ({"options": {"shape": "number"}}, r"shows int, expected a text. Name one of its entries"),
        ({"options": {"shape": "mapping"}, "entry": "place"}, r"shows int, expected a text"),
    ],
)
def test_what_cannot_be_played_by_text_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        begun(**settings)
