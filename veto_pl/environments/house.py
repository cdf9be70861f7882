"""A small house in which something has to be brought somewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from veto_pl.seams import Environment, Episode, Example, Message, Reply

ROOMS = ("attic", "bath", "cellar", "den", "entry", "garage", "hall", "kitchen", "study")
"""Three rows of three, from the north west on."""
THINGS = ("book", "cup", "key", "lamp")
WAYS = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}


@dataclass(frozen=True)
class House(Environment):
    """Nine rooms and four things: one of them has to be brought to a room. Ten turns are always enough.

    The agent writes `go north`, `take lamp`, `drop lamp`, and reads what it sees. Rooms, things and the wish are drawn
    from the field `level` of the row, where it has one (see `Levels`), and else from the seed. The reward is 1 where
    the wish is fulfilled, and 0 otherwise.
    """

    def begin(self, example: Example, seed: int) -> Episode:
        return _Visit(torch.Generator().manual_seed(int(example.row.get("level", seed))))


class _Visit(Episode):
    """An episode in the house.

    Args:
        draws: what is random.
    """

    def __init__(self, draws: torch.Generator) -> None:
        order, far = (torch.randperm(len(ROOMS), generator=draws).tolist() for _ in range(2))
        self.rooms = [ROOMS[room] for room in order]
        self.here, self.target, place = far[:3]
        self.wish = THINGS[int(torch.randint(len(THINGS), (), generator=draws))]
        others = torch.randint(len(ROOMS), (len(THINGS),), generator=draws).tolist()
        self.places: dict[str, int | None] = dict(zip(THINGS, others, strict=True))
        # The wish lies neither here nor at its aim, so that there is something to do.
        self.places[self.wish] = place

    @property
    def opening(self) -> tuple[Message, ...]:
        return (_said(f"Bring the {self.wish} to the {self.rooms[self.target]}. {self._view()}"),)

    def reply(self, turn: Message) -> Reply:
        verb, _, what = " ".join(str(turn.get("content")).lower().split()).partition(" ")
        possible = self._act(verb, what)
        done = self.places[self.wish] == self.target
        said = self._view() if possible else f"That is not possible. {self._view()}"
        return Reply((_said(said),), done=done, failed=not possible)

    def reward(self) -> float:
        return float(self.places[self.wish] == self.target)

    def expert(self) -> str | None:
        place = self.places[self.wish]
        if place == self.target:
            return None
        if place == self.here:
            return f"take {self.wish}"
        if place is None and self.here == self.target:
            return f"drop {self.wish}"
        return self._towards(self.target if place is None else place)

    def _towards(self, room: int) -> str:
        (row, column), (to_row, to_column) = divmod(self.here, 3), divmod(room, 3)
        if row != to_row:
            return "go south" if to_row > row else "go north"
        return "go east" if to_column > column else "go west"

    def _act(self, verb: str, what: str) -> bool:
        """Do what the agent wants, and return whether that is possible."""
        if verb == "go" and what in WAYS:
            row, column = (a + b for a, b in zip(divmod(self.here, 3), WAYS[what], strict=True))
            inside = 0 <= row < 3 and 0 <= column < 3
            self.here = 3 * row + column if inside else self.here
            return bool(inside)
        if verb == "take" and self.places.get(what) == self.here:
            self.places[what] = None
            return True
        if verb == "drop" and what in self.places and self.places[what] is None:
            self.places[what] = self.here
            return True
        return False

    def _view(self) -> str:
        around = [f"{way}: {self.rooms[room]}" for way, room in self._ways()]
        seen = [thing for thing in THINGS if self.places[thing] == self.here]
        carried = [thing for thing in THINGS if self.places[thing] is None]
        return (
            f"You are in the {self.rooms[self.here]} ({', '.join(around)}). You see {_list(seen)}. "
            f"You carry {_list(carried)}."
        )

    def _ways(self) -> list[tuple[str, int]]:
        row, column = divmod(self.here, 3)
        steps = [(way, row + down, column + right) for way, (down, right) in WAYS.items()]
        return [(way, 3 * y + x) for way, y, x in steps if 0 <= y < 3 and 0 <= x < 3]


def _list(things: list[str]) -> str:
    return ", ".join(f"a {thing}" for thing in things) or "nothing"


def _said(text: str) -> Message:
    return {"role": "user", "content": text}
