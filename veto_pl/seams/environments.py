"""The seam of environments: what answers the agent turn by turn, and how good the whole was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from veto_pl.core.part import Part
from veto_pl.seams.conversation import Message
from veto_pl.seams.data import Example


@dataclass(frozen=True)
class Reply:
    """What an environment says to a turn of the agent.

    Args:
        messages: what the agent reads next, such as a message of the role `tool`. Where nothing is said, the episode is
            over, for there is nothing to answer.
        done: whether the episode is over; nobody reads what is said then.
        failed: whether the turn could not be carried out: a call that nobody can read, or a tool that raised.
    """

    messages: tuple[Message, ...] = ()
    done: bool = False
    failed: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the agent has nothing to answer."""
        return self.done or not self.messages


class Episode(ABC):
    """One dialogue with an environment. It is used by one thread at a time, and not always by the same one."""

    @property
    def opening(self) -> tuple[Message, ...]:
        """What the environment says behind the prompt of the row, such as the first observation; by default nothing.

        A message of the user behind one of the user becomes a part of it.
        """
        return ()

    @abstractmethod
    def reply(self, turn: Message) -> Reply | Awaitable[Reply]:
        """Answer a turn of the agent; `async def` is awaited.

        It raises on no turn, whatever it says: that would be a failed turn, and the end of the episode.

        Args:
            turn: `content`, and as `tool_calls` the calls in it, where there are any: `function` with `name` and
                `arguments`, a mapping. `invalid_tool_calls` has the texts of calls that nobody can read.
        """

    def reward(self) -> float | None:
        """Return how good the episode was, asked once at its end, however it ended; 1.0 and only 1.0 is a success.

        By default None: the task judges the agent's last turn.
        """
        return None

    def expert(self) -> str | None:
        """Return what a good agent would say now; None where nobody knows, or where there is nothing left to do.

        Calls of tools are JSON between `<tool_call>` and `</tool_call>`, whatever the template makes of them.
        """
        return None

    def close(self) -> None:
        """Let go of what the episode holds, such as a process or a connection; by default nothing."""
        return


class Environment(Part, ABC):
    """What an agent talks to: it begins an episode for a row of the task."""

    @abstractmethod
    def begin(self, example: Example, seed: int) -> Episode:
        """Begin an episode.

        Args:
            example: the row.
            seed: below 2^63; all that is random in the episode is drawn from it. Equal seeds give equal episodes.
        """

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The JSON schemas of the tools that the agent may call, as chat templates take them; by default none."""
        return ()

    @property
    def gives_rewards(self) -> bool:
        """Whether its episodes have rewards of their own, so that the task needs no verifier; by default true.

        An episode without one is then an error in a training that learns from rewards, unless the task has a verifier.
        """
        return True
