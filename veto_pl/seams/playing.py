"""The seam of rollouts with an environment: episodes as rows of tokens, and as what was said in them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from veto_pl.core.sampling import Sampling
from veto_pl.core.step import Step
from veto_pl.seams.batches import Sequences
from veto_pl.seams.conversation import Message
from veto_pl.seams.prompts import PromptBatch
from veto_pl.seams.rollouts import Engine, Models, RolloutSource

MEASURED_TURNS = 32
"""Turns that are measured one by one, at most."""
_THOUGHTS = ("thinking", "reasoning_content", "reasoning")
"""What parsers of turns call what a model thinks before it speaks."""


@dataclass(frozen=True)
class Line:
    """What somebody has said in an episode, as files and pages tell it.

    Args:
        role: of the speaker.
        content: the text.
        turn: k for the agent's k-th turn and the reply to it; 0 for what is said first.
        counts: whether it counts in the loss: the agent has written it, and no expert.
        name: of the tool that has replied.
        thought: what the agent thought before.
        calls: of tools, each with `name` and `arguments`, or the `text` of one that nobody can read.
        problem: why the turn has failed; empty where it has not.
        cut: whether the turn was cut off, which ends the episode.
    """

    role: str
    content: str
    turn: int = 0
    counts: bool = False
    name: str = ""
    thought: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    problem: str = ""
    cut: bool = False

    @classmethod
    def of(cls, message: Message, **others: Any) -> Line:
        """Return what a message says; `others` are the other fields."""
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = [{"name": one["name"], "arguments": one["arguments"]} for one in functions]
        calls += [{"text": text} for text in message.get("invalid_tool_calls") or ()]
        thoughts = [str(message[key]) for key in _THOUGHTS if message.get(key)]
        told = {"name": str(message.get("name") or ""), "thought": "\n".join(thoughts), "calls": tuple(calls)}
        return cls(str(message["role"]), str(message["content"]), **(told | others))

    @property
    def is_first(self) -> bool:
        """Whether it was said before the agent's first turn."""
        return self.turn == 0

    @property
    def call_texts(self) -> list[str]:
        """The calls as texts, such as `add({"a": 1})`."""
        return [one.get("text") or f"{one['name']}({json.dumps(one['arguments'], ensure_ascii=False)})"
                for one in self.calls]  # fmt: skip

    @property
    def text(self) -> str:
        """What is said, and the calls behind it, each on a line of its own."""
        return "\n".join([*filter(None, [self.content]), *(f"→ {call}" for call in self.call_texts)])

    def plain(self) -> dict[str, Any]:
        """Return the line as plain values, without those that say nothing."""
        told = {name: value for name, value in asdict(self).items() if value or name in ("role", "content")}
        return told | ({"calls": [dict(call) for call in self.calls]} if self.calls else {})


def opening_of(dialogue: Iterable[Line]) -> tuple[Line, ...]:
    """Return what was said before the agent's first turn."""
    return tuple(line for line in dialogue if line.is_first)


def spoken_in(dialogue: Iterable[Line]) -> tuple[Line, ...]:
    """Return the agent's turns and the replies."""
    return tuple(line for line in dialogue if not line.is_first)


class PlayingSource(RolloutSource, ABC):
    """A rollout source whose completions are episodes with an environment.

    It has a setting `max_turns`, the most turns of the agent in an episode.
    """

    max_turns: int

    @property
    def measured_turns(self) -> int:
        """How many turns have numbers of their own in what is logged: the first 32, at most."""
        return min(self.max_turns, MEASURED_TURNS)

    @abstractmethod
    def answering(self, sampling: Sampling, engine: Engine | None) -> PlayingSource:
        """Return the source as evaluations use it: whole episodes from their beginning, whatever the training plays.

        Args:
            sampling: of each turn, and how many episodes each prompt has.
            engine: what runs the student; None for that of the source.
        """

    @abstractmethod
    def told(self, prompts: PromptBatch, models: Models, step: Step) -> tuple[Sequences, tuple[tuple[Line, ...], ...]]:
        """Return the rollout, and what was said in each episode, in the order of the episodes.

        Collective where `__call__` is: call it on every rank.
        """
