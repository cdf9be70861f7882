"""What an environment is asked, several episodes at a time, and what is said where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol, TypeVar

from veto_pl.rollouts.concurrent_calls import Answer, answers_of
from veto_pl.seams import Environment

T = TypeVar("T")
_WHAT_THEN = {
    "reply": "The turn counts as failed, and ends its episode.",
    "reward": "The episode is not trained on, and is worth 0.",
    "close": "What it holds may stay open.",
}
"""What follows from a failure, for warnings."""
_warned: set[str] = set()


class Asking(Protocol):
    """Who asks; `Played` says what each of these means."""

    @property
    def environment(self) -> Environment:
        """Return what is asked."""
        ...

    @property
    def timeout(self) -> float:
        """Return seconds."""
        ...

    @property
    def at_once(self) -> int:
        """Return how many answer at a time."""
        ...


def ask(
    source: Asking, calls: Sequence[Callable[[], T | Awaitable[T]]], what: Literal["reply", "reward", "close"]
) -> list[Answer[T]]:
    """Ask an environment, and warn once of each way in which it fails, since thousands of episodes may fail alike.

    Args:
        source: with the environment and the limits.
        calls: of its episodes.
        what: is called.
    """
    answers = answers_of(calls, timeout=source.timeout, at_once=source.at_once)
    name = type(source.environment).__name__
    for problem in {answer.problem: None for answer in answers if answer.problem}:
        kind = f"{name} {what} {problem[:30]}"
        if kind not in _warned:
            _warned.add(kind)
            warnings.warn(f"`{name}`: `{what}` {problem}. {_WHAT_THEN[what]}", stacklevel=3)
    return answers
