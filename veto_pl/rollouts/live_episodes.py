"""Episodes that are being played."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts.concurrent_calls import Answer
from veto_pl.rollouts.episode_rows import EpisodeRow, WrittenTurn
from veto_pl.seams import Dialogue, Ending, Episode, Line, Message, Reply


@dataclass(frozen=True)
class Room:
    """How much an episode may hold.

    Args:
        turn: tokens of the longest turn.
        completion: tokens of the longest completion of a row.
        positions: of the model; None where it does not say.
        reply: characters of the longest reply.
    """

    turn: int
    completion: int
    positions: int | None
    reply: int

    def is_left(self, read: int, written: int) -> bool:
        """Return whether another turn fits behind a row that was read and written so far, in tokens."""
        fits = self.positions is None or read + written + self.turn <= self.positions
        return fits and written + self.turn <= self.completion


class LiveEpisode:
    """An episode with what was said in it, as messages and as rows of tokens.

    Args:
        episode: the environment's.
        dialogue: how messages become tokens.
        prompt: the row of the prompt batch.
        prompt_ids: its ids.
        copy: which of the episodes of this prompt it is.
        number: of the episode in the rollout.
        turns: how many the agent may have.
        opening: what the environment says first.
        said: what an expert and the environment have said behind the opening.
        shows_tools: whether the agent reads of tools that are not in the prompt of the batch.
    """

    def __init__(
        self, episode: Episode, dialogue: Dialogue, prompt: int, prompt_ids: list[int], copy: int, number: int,
        turns: int, opening: Sequence[Message] = (), said: Sequence[Message] = (), *, shows_tools: bool,
    ) -> None:  # fmt: skip
        self.episode, self.dialogue, self.prompt, self.copy = episode, dialogue, prompt, copy
        self.turns, opening = turns, tuple(cleaned(opening))
        self.messages, self.prompt_ids = (*dialogue.begun(opening), *cleaned(said)), prompt_ids
        opens = bool(opening or said or shows_tools)
        self.row = EpisodeRow(dialogue.read(self.messages) if opens else None, prompt, number)
        self.rows, self.is_live = [self.row], True
        self.lines = [Line.of(message) for message in self.messages]
        self._end: int | None = None

    @property
    def opens(self) -> bool:
        """Whether the agent reads something else first than the prompt of the batch."""
        return self.rows[0].read is not None

    @property
    def read(self) -> list[int]:
        """The ids that the present row begins with."""
        return self.prompt_ids if self.row.read is None else self.row.read

    @property
    def context(self) -> list[int]:
        """The ids that the next turn is written behind."""
        return [*self.read, *self.row.ids]

    def write(self, turn: WrittenTurn, number: int) -> None:
        """Take a turn of the agent; one that was cut off is the last, as nobody knows what it was going to say."""
        said = self.dialogue.heard(self.context, turn.said)
        self.row.write(turn, number)
        self.messages, self._end = (*self.messages, said), turn.end
        self.is_live = turn.ending != Ending.LIMIT
        self.lines.append(Line.of(said, turn=number, counts=True, cut=not self.is_live))

    def hear(self, answer: Answer[Reply], number: int, room: Room) -> None:
        """Take the reply to turn `number`; nobody reads it where no turn follows, or none has room.

        Where the environment gave none, the turn has failed, and is the last.
        """
        reply = Reply(done=True, failed=True) if answer.value is None else answer.value
        said = shortened(tuple(cleaned(reply.messages)), room.reply)
        self._note(answer, reply.failed, said, number)
        self.is_live = not (number == self.turns or reply.is_last)
        if not self.is_live:
            return
        following = self.dialogue.between(self.messages, said, self._end)
        if following.anew:  # and is no part of the completion of the new row
            self.is_live = room.is_left(len(following.ids), 0)
        else:
            self.is_live = room.is_left(len(self.read), len(self.row.ids) + len(following.ids))
        if not self.is_live:
            return
        self.messages = (*self.messages, *said)
        if following.anew:
            self.row = EpisodeRow(list(following.ids), self.row.prompt, self.row.episode)
            self.rows.append(self.row)
        else:
            self.row.hear(following.ids, number)

    def _note(self, answer: Answer[Reply], failed: bool, said: Sequence[Message], number: int) -> None:
        """Write down what was said to a turn, and whether it has failed."""
        self.row.failed += failed
        self.row.late += answer.late
        if failed:
            self.lines[-1] = replace(self.lines[-1], problem=answer.problem or "failed")
        self.lines += [Line.of(message, turn=number) for message in said]

    def leave_out(self, answer: Answer[float | None]) -> None:
        """Let nothing of the episode count, whose reward has failed."""
        self.row.late += answer.late
        self.lines = [replace(line, counts=False) for line in self.lines]
        for row in self.rows:
            row.counted = [False] * len(row.counted)


def cleaned(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield messages whose texts are valid Unicode, with a text as content, whatever an environment says.

    Raises:
        ConfigurationError: one is no mapping with a role, or there is something else than messages.
    """
    said: object = messages
    if isinstance(said, str | Mapping) or not isinstance(said, Sequence):
        raise ConfigurationError(
            f"An environment must say a tuple of messages, mappings with `role` and `content`, got {said!r:.100}."
        )
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigurationError(
                f"An environment must say messages, mappings with `role` and `content`, got {message!r:.100}."
            )
        content = message.get("content")
        whole = {**message, "content": "" if content is None else str(content)}
        yield {
            key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for key, value in whole.items()
        }


def shortened(messages: Sequence[Message], longest: int) -> tuple[Message, ...]:
    r"""Return messages of so many characters together, at most; the agent reads how many were left out.

    Example:
        >>> shortened([{"role": "tool", "content": "abcdef"}, {"role": "tool", "content": "gh"}], 4)[0]["content"]
        'abcd\n[2 characters left out]'
    """
    said = []
    for message in messages:
        content = message["content"]
        kept, longest = content[:longest], max(longest - len(content), 0)
        if len(kept) < len(content):
            kept = f"{kept}\n[{len(content) - len(kept)} characters left out]"
        said.append({**message, "content": kept})
    return tuple(said)
