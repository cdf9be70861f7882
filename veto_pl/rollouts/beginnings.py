"""How episodes begin: from their beginning, or behind an expert's turns."""

from __future__ import annotations

from dataclasses import dataclass

from veto_pl.core.event_loop import settled
from veto_pl.data.tool_calls import tagged_calls
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Environment, Episode, Example, Message


@dataclass(frozen=True)
class Beginning:
    """An episode that somebody goes on with.

    Args:
        episode: the episode.
        opening: what its environment says first.
        said: by an expert and the environment so far, behind the opening.
        turns: how many turns of the expert that were.
    """

    episode: Episode
    opening: tuple[Message, ...] = ()
    said: tuple[Message, ...] = ()
    turns: int = 0


def from_front(environment: Environment, example: Example, seed: int) -> Beginning:
    """Begin an episode."""
    episode = _begun(environment, example, seed)
    return Beginning(episode, episode.opening)


def behind_expert(environment: Environment, example: Example, seed: int, left: int, longest: int) -> Beginning:
    """Begin an episode, and let its expert play all but its last turns.

    Args:
        environment: has an expert.
        example: the row.
        seed: of the episode; another one with the same seed tells how many turns the expert needs.
        left: turns of the expert that are left out.
        longest: turns of the longest episode.

    Raises:
        ConfigurationError: the environment has no expert.
    """
    turns = _turns_of_expert(_begun(environment, example, seed), longest)
    episode, said = _begun(environment, example, seed), list[Message]()
    opening = episode.opening
    played = turns[: max(len(turns) - left, 0)]
    try:
        for turn in played:
            said += [turn, *settled(episode.reply(turn)).messages]
    except BaseException:
        episode.close()
        raise
    return Beginning(episode, opening, tuple(said), len(played))


def _begun(environment: Environment, example: Example, seed: int) -> Episode:
    """Return an episode that begins; raise `TypeError` where it is none."""
    episode: object = environment.begin(example, seed)
    if not isinstance(episode, Episode):
        raise TypeError(f"it must return an `Episode`, got {episode!r:.100}")
    return episode


def _turns_of_expert(episode: Episode, longest: int) -> list[Message]:
    """Return the turns of the expert, up to the end of the episode, and close it."""
    if type(episode).expert is Episode.expert:
        raise ConfigurationError("`begin_at: back` needs an environment with an expert. Set `begin_at: front`.")
    turns: list[Message] = []
    try:
        while len(turns) < longest and (said := episode.expert()) is not None:
            if not isinstance(said, str):
                raise TypeError(f"`expert` must return a text or None, got {said!r:.100}")
            turns.append(tagged_calls(said))
            if settled(episode.reply(turns[-1])).is_last:
                break
        return turns
    finally:
        episode.close()
