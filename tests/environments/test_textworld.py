"""Games of TextWorld as environments: what is seen of facts here, and the package itself by `make test-worlds`."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.environments.test_environments import turn
from veto_pl.environments import TextWorld
from veto_pl.environments.textworld_games import seen
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example

DEN = [("at", "P", "den"), ("west_of", "hall", "den"), ("east_of", "den", "hall"), ("at", "box", "den")]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ([], "You see box."),
        ([("closed", "box"), ("in", "key", "box")], "You see box (closed)."),
        ([("locked", "box"), ("in", "key", "box")], "You see box (locked)."),
        ([("open", "box"), ("in", "key", "box")], "You see box (open), key (in box)."),
        ([("on", "cup", "box"), ("at", "lamp", "hall")], "You see box, cup (on box)."),
        ([("link", "den", "gate", "hall"), ("locked", "gate")], "You see box, gate (locked)."),
        ([("in", "pie", "I"), ("raw", "pie")], "You see box. You carry pie (raw)."),
    ],
)
def test_what_is_in_reach_is_seen(more, text):
    said = seen([*DEN, *more])
    assert said.startswith("You are in the den. West is the hall")
    assert text in said
    assert seen([*DEN, *more][::-1]) == said


def test_each_door_is_seen_where_it_leads():
    doors = [("link", "den", "gate", "hall"), ("link", "hall", "gate", "den"), ("link", "den", "hatch", "loft")]
    said = seen([*DEN, *doors, ("north_of", "loft", "den"), ("closed", "gate"), ("open", "hatch")])
    assert "North is the loft, through hatch. West is the hall, through gate. You see box, gate (closed)" in said
    assert "East is the den, through gate. You see gate. " in seen([("at", "P", "hall"), *DEN[1:3], *doors])


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    textworld = pytest.importorskip("textworld", reason="run by `make test-worlds`")
    folder = tmp_path_factory.mktemp("games")
    for seed in range(3):
        options = textworld.GameOptions()
        options.nb_rooms, options.nb_objects, options.quest_length, options.seeds = 3, 4, 3, seed
        textworld.generator.make_game(options).save(str(folder / f"{seed}.json"))
    return TextWorld(str(folder / "*.json"))


def played(games, number):
    """All that is said in an episode of the expert and of somebody who tries anything; with its reward."""
    episode, draws = games.begin(Example(""), number), random.Random(number)
    said = [episode.opening]
    for _ in range(12):
        wild = draws.choice([*episode.state.admissible_commands, "fly"])
        reply = episode.reply(turn(wild if draws.random() < 0.5 else episode.expert() or "look"))
        said.append(reply)
        if reply.is_last:
            break
    said.append(episode.reward())
    episode.close()
    return said


@pytest.mark.worlds
def test_the_expert_wins_from_anywhere(games):
    for level in range(3):
        episode = games.begin(Example("", row={"level": level}), 0)
        assert "You are in the" in episode.opening[0]["content"]
        wild = [command for command in episode.state.admissible_commands if command.startswith("go ")]
        for command in wild[:1]:
            assert not episode.reply(turn(command.upper())).failed
        assert episode.reward() < 1
        for _ in range(20):
            if (command := episode.expert()) is None:
                break
            reply = episode.reply(turn(command))
            assert not reply.failed
        assert reply.done
        assert episode.reward() == 1
        episode.close()


@pytest.mark.worlds
@pytest.mark.parametrize("text", ["fly", "", "go nowhere", "\ud83d \x00", "look look", "x" * 10_000])
def test_what_is_not_possible_is_a_failed_turn_and_nothing_moves(games, text):
    episode = games.begin(Example(""), 1)
    reply = episode.reply(turn(text))
    assert (reply.failed, reply.done) == (True, False)
    view = episode.opening[0]["content"].rpartition("\n\n")[2]
    assert reply.messages[0]["content"].endswith(view)
    episode.close()


@pytest.mark.worlds
def test_episodes_beside_each_other_are_those_alone(games):
    alone = [played(games, number) for number in range(16)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda number: played(games, number), range(16))) == alone
    assert len({str(said) for said in alone}) > 3


@pytest.mark.worlds
def test_games_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"`TextWorld.games`: given .* expected files of games"):
        TextWorld(str(tmp_path / "*.json"))


@pytest.mark.worlds
def test_a_level_stays_the_game_that_it_was(games, tmp_path):
    first, *others = games.files
    shutil.copy(first, tmp_path / "b.json")
    world = TextWorld(str(tmp_path / "*.json"))
    opening = world.begin(Example(""), 0).opening
    shutil.copy(others[0], tmp_path / "a.json")
    assert world.begin(Example(""), 0).opening == opening
