"""What is kept of a teacher's distributions instead of rows of the vocabulary's size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TopKScores:
    """The k likeliest ids of a teacher and one outcome for all others together; `...` is [B, T] or [N].

    Args:
        ids: [..., k] int64, distinct.
        logp: [..., k + 1] float32 normalised log-probabilities, the tail last.
        temperature: divided the teacher's logits before they were normalised.
    """

    ids: Tensor
    logp: Tensor
    temperature: float = 1.0

    def __getitem__(self, index: Tensor | slice | tuple[slice | Tensor, ...]) -> TopKScores:
        return TopKScores(self.ids[index], self.logp[index], self.temperature)
