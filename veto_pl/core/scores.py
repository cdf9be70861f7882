"""What is kept of a teacher's distributions instead of rows of the vocabulary's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError


@dataclass(frozen=True)
class TopKScores:
    """The k likeliest ids of a teacher and one outcome for all others together; `...` is [B, T] or [N].

    Args:
        ids: [..., k] int64, distinct.
        logp: [..., k + 1] float32 normalised log-probabilities, the tail last.
        temperature: divided the teacher's logits before they were normalised.
        sampled_logp: [...] float32, the teacher's log-probability of the token that was written, likely or not; None
            where it was not kept.
    """

    ids: Tensor
    logp: Tensor
    temperature: float = 1.0
    sampled_logp: Tensor | None = None

    def __getitem__(self, index: Tensor | slice | tuple[slice | Tensor, ...]) -> TopKScores:
        sampled = None if self.sampled_logp is None else self.sampled_logp[index]
        return TopKScores(self.ids[index], self.logp[index], self.temperature, sampled)

    def __setitem__(self, index: tuple[int | Tensor, ...], scores: TopKScores) -> None:
        """Write the scores of some tokens in place."""
        self.ids[index], self.logp[index] = scores.ids, scores.logp
        if self.sampled_logp is not None and scores.sampled_logp is not None:
            self.sampled_logp[index] = scores.sampled_logp

    def to(self, device: torch.device | str) -> TopKScores:
        """Return the same scores on a device."""
        sampled = None if self.sampled_logp is None else self.sampled_logp.to(device)
        return TopKScores(self.ids.to(device), self.logp.to(device), self.temperature, sampled)

    def check_temperature(self, objective: str, temperature: float) -> None:
        """Raise `ConfigurationError` where the loss of an objective has another temperature than the scores."""
        if self.temperature != temperature:
            raise ConfigurationError(
                f"The stored or served teacher was computed at temperature {self.temperature}, but `{objective}."
                f"temperature` is {temperature}. Set the same there, or store the teacher again."
            )

    @staticmethod
    def uniform(shape: tuple[int, ...], k: int, temperature: float = 1.0, *, sampled: bool = False) -> TopKScores:
        """Return uniform distributions over the first k ids and the tail, where nothing was scored.

        Args:
            shape: of `...`.
            k: ids.
            temperature: as it was for others.
            sampled: whether there is a log-probability of the token, then 0.
        """
        logp = torch.zeros(*shape, k + 1).log_softmax(-1)
        return TopKScores(torch.arange(k).repeat(*shape, 1), logp, temperature, torch.zeros(shape) if sampled else None)
