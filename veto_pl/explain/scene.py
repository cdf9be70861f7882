"""A vocabulary of a few ids with a fixed teacher, and a student whose belief in the teacher's choice is swept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.heads import LinearHead
from veto_pl.seams import LanguageModel, Media, Models, Sequences

Result = TypeVar("Result")
MIN_PROBABILITY = 1e-6
"""The student's probability is swept from here to as close to 1."""
NOTED = (1e-6, 0.01, 0.1, 0.5, 0.99)
"""Probabilities of the student whose numbers are shown, beside the teacher's own."""


@dataclass(frozen=True)
class Scene:
    """One token to predict. Id 0 is the one that the teacher prefers; all others share the rest evenly, in both models.

    Args:
        teacher: the teacher's probability of id 0.
        outcomes: ids of the vocabulary.
        points: values of the student's probability of id 0, evenly spaced in its log-odds, beside those that are noted.

    Raises:
        ConfigurationError: the teacher does not prefer id 0, or there are too few ids or points.
    """

    teacher: float = 0.9
    outcomes: int = 6
    points: int = 49

    def __post_init__(self) -> None:
        if self.outcomes < 2 or self.points < 2:
            raise ConfigurationError(
                f"A picture needs at least 2 `outcomes` and 2 `points`, got {self.outcomes} and {self.points}."
            )
        if not 1 / self.outcomes < self.teacher < 1:
            raise ConfigurationError(
                f"`teacher` must lie between 1 / {self.outcomes}, where no id is preferred, and 1, got {self.teacher}."
            )

    @property
    def noted(self) -> tuple[float, ...]:
        """Probabilities of the student whose numbers are shown."""
        return tuple(sorted({*NOTED, self.teacher}))

    def student(self) -> Tensor:
        """Return [n] float64 probabilities of id 0, ascending from `MIN_PROBABILITY`, with the noted ones."""
        end = math.log((1 - MIN_PROBABILITY) / MIN_PROBABILITY)
        even = torch.linspace(-end, end, self.points, dtype=torch.float64).sigmoid()
        return torch.tensor(sorted({*self.noted, *(round(value, 12) for value in even.tolist())}), dtype=torch.float64)

    def logp(self, preferred: Tensor | float) -> Tensor:
        """Return [..., outcomes] float64 log-probabilities of a model that gives id 0 the probability `preferred`."""
        first = torch.as_tensor(preferred, dtype=torch.float64)[..., None]
        others = ((1 - first) / (self.outcomes - 1)).expand(*first.shape[:-1], self.outcomes - 1)
        return torch.cat([first, others], -1).log()


class Table(LanguageModel):
    """Stands for a language model in `Objective.loss`: hidden states are logits, and the head passes them on.

    Args:
        logits: [N, V], those of the N tokens that are predicted, or [1, V], those of every token.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.vocab_size = logits.shape[1]

    def forward(self, sequences: Sequences, readout: Callable[[Tensor, LanguageModel], Result]) -> Result:
        """Call `readout` with the logits, whatever the tokens are, and return its result."""
        return readout(self.logits.expand(len(sequences.token_ids()), -1), self)

    def head(self) -> LinearHead:
        """Return the identity."""
        return LinearHead(torch.eye(self.vocab_size, dtype=self.logits.dtype))

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return `hidden`, which are the logits, and zeros as the probability of padding ids."""
        return hidden, hidden.new_zeros(hidden.shape[:-1])

    def next_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Any,
        position_ids: Tensor | None = None,
        media: Media | None = None,
    ) -> Tensor:
        """Return [B, V] logits of the first token, whatever was read."""
        return self.logits[:1].expand(len(input_ids), -1)


def table_models(student: Tensor, teacher: Tensor, reference: Tensor | None = None) -> Models:
    """Return models that give fixed [N, V] logits, without a tokenizer."""
    third = None if reference is None else Table(reference)
    return Models(Table(student), Table(teacher), tokenizer=None, reference=third)


def one_token(token: int, sampler_logp: Tensor, copies: int = 1) -> Sequences:
    """Return a one-token prompt with a completion of one repeated token; the reward is 1 if the token is id 0.

    Args:
        token: the completion.
        sampler_logp: [V] of the distribution that it is drawn from.
        copies: how often the token is repeated.
    """
    prompt, written = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, copies), token)
    counted = torch.arange(1 + copies)[None] > 0
    return Sequences(
        input_ids=torch.cat([prompt, written], 1),
        attention_mask=torch.ones_like(counted),
        loss_mask=counted,
        prompt_rows=torch.zeros(1, dtype=torch.int64),
        on_policy=torch.ones(1, dtype=torch.bool),
        sampler_logp=torch.where(counted, sampler_logp[token], 0.0),
        rewards=torch.tensor([float(token == 0)]),
    )
