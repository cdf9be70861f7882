"""How what is said in an episode becomes tokens, and the agent's tokens become what it has said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from veto_pl.seams.conversation import Message


@dataclass(frozen=True)
class Continuation:
    """What the agent reads before its next turn.

    Args:
        ids: the tokens.
        anew: whether they are all that it reads, as where a template changes earlier turns; else they follow what it
            has read and written so far.
    """

    ids: tuple[int, ...]
    anew: bool = False


class Dialogue(ABC):
    """The dialogue of an agent about a row, as a template shows it. What it returns depends on its arguments alone.

    Args:
        messages: the row's own, which the agent reads first.
    """

    def __init__(self, messages: tuple[Message, ...]) -> None:
        self.messages = messages

    def begun(self, opening: Sequence[Message]) -> tuple[Message, ...]:
        """Return the row's messages with what an environment says behind them.

        Of two messages of the user, one behind the other, which many templates refuse, becomes one.
        """
        said = [*self.messages]
        for message in opening:
            if said and said[-1]["role"] == message["role"] == "user":
                parts = [str(one.get("content") or "") for one in (said[-1], message)]
                said[-1] = {**said[-1], "content": "\n\n".join(filter(None, parts))}
            else:
                said.append(message)
        return tuple(said)

    @abstractmethod
    def read(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of what the agent reads before it answers these messages."""

    @abstractmethod
    def between(self, said: Sequence[Message], reply: Sequence[Message], end: int | None) -> Continuation:
        """Return what stands between the agent's last token and its next turn; what it wrote is not tokenised again.

        Args:
            said: all messages so far; the last one is the agent's turn.
            reply: what follows, at least one message.
            end: the id with which the turn has ended; None where it has ended otherwise.
        """

    @abstractmethod
    def heard(self, read: Sequence[int], written: Sequence[int]) -> Message:
        """Return what the agent has said.

        Args:
            read: the ids in front of its turn.
            written: the ids of the turn, without the one that ends it.
        """
