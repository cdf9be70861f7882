"""An environment that says no until the answer is right."""

from __future__ import annotations

from dataclasses import dataclass

from veto_pl.data.rewards import ExactMatch
from veto_pl.seams import Environment, Episode, Example, Message, Reply, Reward


@dataclass(frozen=True)
class TryAgain(Environment):
    """The agent answers the row's question until a verifier says that it is right.

    Args:
        verifier: judges each answer; 1 and only 1 is right. The last one's score is the reward of the episode.
        said: what the agent reads after a wrong answer.
    """

    verifier: Reward = ExactMatch()
    said: str = "That is wrong. Try again."

    @classmethod
    def examples(cls) -> tuple[TryAgain, ...]:
        return cls(), cls(said="no>")

    def begin(self, example: Example, seed: int) -> Episode:
        return _Attempts(self, example)


class _Attempts(Episode):
    """An episode of answers.

    Args:
        environment: says what is right, and what is said.
        example: the row.
    """

    def __init__(self, environment: TryAgain, example: Example) -> None:
        self.environment, self.example, self.score = environment, example, 0.0

    def reply(self, turn: Message) -> Reply:
        self.score = self.environment.verifier(self.example, str(turn.get("content")))
        return Reply(({"role": "user", "content": self.environment.said},), done=self.score == 1)

    def reward(self) -> float:
        return self.score

    def expert(self) -> str | None:
        return None if self.score == 1 else self.example.completion
