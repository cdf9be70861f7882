"""The seams of data: rows of a task, how they become prompts, and how completions are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from veto_pl.core.part import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One row of a task: the text before templating, its references if there are any, and the raw row.

    Args:
        prompt: the text before templating.
        completion: the reference that is trained on.
        row: the row as the task read it.
        alternatives: references that are as good as `completion`, for judging.
    """

    prompt: str
    completion: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All references."""
        return self.alternatives if self.completion is None else (self.completion, *self.alternatives)


class Reward(Part, ABC):
    """A verifier: how good a completion is."""

    @abstractmethod
    def __call__(self, example: Example, completion: str) -> float:
        """A score; 1.0 and only 1.0 means correct. Never raises on any text."""

    def batch(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the score of each pair; override where judging many at once is faster."""
        return [self(example, text) for example, text in zip(examples, completions, strict=True)]


class Template(Part, ABC):
    """How an example becomes the text that the models read."""

    @abstractmethod
    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """The prompt's text, ready to be tokenised without special tokens being added."""

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The Jinja chat template that makes this text of a user's message, for exports; None for no template."""
        return None


class Task(Part, ABC):
    """Rows to learn from, and how a completion of a row is judged."""

    @abstractmethod
    def load(self, split: str) -> Iterable[Example]:
        """The rows of `split`, `train`, `validation` or `test`: a sequence, or for training a stream without length."""

    @abstractmethod
    def reward(self, example: Example, completion: str) -> float:
        """A score; 1.0 and only 1.0 means correct."""

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """The score of each pair; override where judging many at once is faster."""
        return [self.reward(example, text) for example, text in zip(examples, completions, strict=True)]

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion of this task, beside those of `Sampling.stop`."""
        return ()


class Judge(Part, ABC):
    """Which of two answers is better."""

    @abstractmethod
    def __call__(self, example: Example, first: str, second: str) -> float:
        """1.0 where the first is better, 0.0 where the second is, 0.5 for a tie; else raises `NoVerdictError`."""
