"""Games of TextWorld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from threading import Lock

from veto_pl.core.extras import require_extra
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Environment, Episode, Example, Message, Reply

_LOADING = Lock()
"""TextWorld reads games by one parser, and keeps what it has read in one place."""


@dataclass(frozen=True)
class TextWorld(Environment):
    """Games of TextWorld, with an expert that knows from anywhere how to go on.

    The agent reads the aim, where it is, what is there and what it carries, and writes a command as a turn. One that
    is not possible there is a failed turn. The field `level` of the row chooses the game, where there is one (see
    `Levels`), and else the seed does. The reward is the share of the points that there are: 1 where the game is won.

    Args:
        games: files of games, as a pattern such as `games/*.json`. Those that end in `.json` (`game.save` of TextWorld)
            need no compiler, and are fast; the others (`.z8`, `.ulx`) also have the game's own words.

    Raises:
        ConfigurationError: TextWorld is not installed, or there is no such file.

    References:
        arXiv 1806.11532
    """

    games: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extra("textworld", extra="textworld", needed_by="`TextWorld`")
        if not self.files:
            raise ConfigurationError(
                f"`TextWorld.games`: given `{self.games}`, expected files of games. Make some with `tw-make`, or "
                "correct the pattern."
            )

    @classmethod
    def examples(cls) -> tuple[TextWorld, ...]:
        return ()  # it needs games

    @cached_property
    def files(self) -> list[str]:
        """The files of the games, by name. They are looked up once, so that a level stays the same game."""
        return sorted(glob(self.games, recursive=True))

    def begin(self, example: Example, seed: int) -> Episode:
        return _Quest(self.files[int(example.row.get("level", seed)) % len(self.files)])


class _Quest(Episode):
    """An episode of a game.

    Args:
        file: of the game.
    """

    def __init__(self, file: str) -> None:
        import textworld

        wanted = ("objective", "facts", "admissible_commands", "policy_commands", "score", "max_score", "won", "lost")
        infos = textworld.EnvInfos(**dict.fromkeys(wanted, True))
        self.has_words = not file.endswith(".json")
        with _LOADING:
            self.game = textworld.start(file, infos)
            self.state = self.game.reset()
        self._opening = (_message(f"{(self.state.objective or '').strip()}\n\n{self._view()}".strip()),)

    @property
    def opening(self) -> tuple[Message, ...]:
        return self._opening

    def reply(self, turn: Message) -> Reply:
        known = {command.lower(): command for command in self.state.admissible_commands}
        command = known.get(" ".join(str(turn.get("content")).lower().split()))
        if command is None:
            return Reply((_message(f"That is not possible. {self._view()}"),), failed=True)
        with _LOADING:
            self.state, _, done = self.game.step(command)
        return Reply((_message(self._view()),), done=bool(done))

    def reward(self) -> float:
        if self.state.won:
            return 1.0
        most = self.state.max_score or 1
        # All points are no victory, where something else is left to do.
        return min(float(self.state.score or 0) / most, 1.0 - 1e-6)

    def expert(self) -> str | None:
        commands: list[str] = self.state.policy_commands or []
        return None if self.state.won or self.state.lost or not commands else commands[0]

    def close(self) -> None:
        self.game.close()

    def _view(self) -> str:
        """Return what the agent sees: the game's own words, or what files of JSON know of the place."""
        if self.has_words:
            return str(self.state.feedback).strip()
        return seen([(fact.name, *(one.name for one in fact.arguments)) for fact in self.state.facts])


def seen(facts: Sequence[tuple[str, ...]]) -> str:
    """Return what somebody sees who knows the facts of a game: place, ways, and things in reach with their state.

    Args:
        facts: each with its name and what it is about, as TextWorld states them; `P` is the agent, `I` what it carries.

    Example:
        >>> facts = [("at", "P", "den"), ("west_of", "hall", "den"), ("at", "box", "den"), ("closed", "box")]
        >>> seen([*facts, ("in", "key", "box"), ("in", "lamp", "I")])
        'You are in the den. West is the hall. You see box (closed). You carry lamp.'
    """
    known = set(facts)
    here = next(fact[2] for fact in facts if fact[:2] == ("at", "P"))
    doors = {fact[3]: fact[2] for fact in facts if fact[0] == "link" and fact[1] == here}
    near = {fact[1]: "" for fact in facts if fact[0] == "at" and fact[2:] == (here,) and fact[1] != "P"}
    near |= dict.fromkeys(doors.values(), "")
    shut = {fact[1] for fact in facts if fact[0] in ("closed", "locked")}
    held = [fact for fact in facts if fact[0] in ("in", "on")]
    near |= {what: f"{how} {where}" for how, what, where in held if where in near and where not in shut}
    ways = sorted(
        (fact[0].removesuffix("_of"), fact[1]) for fact in known if fact[0].endswith("_of") and fact[2:] == (here,)
    )
    things = [_described(name, [near[name], *_states(name, facts)]) for name in sorted(near)]
    carried = sorted(_described(what, _states(what, facts)) for how, what, where in held if where == "I")
    said = [
        f"You are in the {here}.",
        *(f"{way.capitalize()} is the {_behind(room, doors.get(room))}." for way, room in ways),
    ]
    return " ".join([*said, f"You see {_listed(things)}.", f"You carry {_listed(carried)}."])


def _behind(room: str, door: str | None) -> str:
    """Return a room with the door that leads there, as a closed one has to be opened first."""
    return room if door is None else f"{room}, through {door}"


def _states(name: str, facts: Sequence[tuple[str, ...]]) -> list[str]:
    """Return what is said of a thing alone, such as that it is closed."""
    return sorted(fact[0] for fact in facts if fact[1:] == (name,))


def _described(name: str, states: Sequence[str]) -> str:
    known = ", ".join(filter(None, states))
    return f"{name} ({known})" if known else name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _message(text: str) -> Message:
    return {"role": "user", "content": text}
