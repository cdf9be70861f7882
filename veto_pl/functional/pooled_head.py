"""Several teachers as one: a head that pools what their heads say, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from veto_pl.functional.heads import Head, ScaleAndCap

Pool = Literal["mixture", "logits"]
"""What is added up: probabilities or logits."""


class PooledHead(Head):
    r"""The heads of several teachers as the head of one, on their hidden states side by side.

    .. math:: \log \sum_k w_k\, p_k \quad (\text{mixture}), \qquad \sum_k w_k\, z_k \quad (\text{logits})

    It is a teacher's: it has no backward pass.

    Args:
        heads: of the teachers.
        widths: how many columns of the hidden states belong to each.
        weights: of each; at least 0 in a mixture, where they add up to 1.
        pool: what is added up.

    Numerics: float32 at least, in log-space, one teacher after the other: of a chunk, two tensors of logits are held at
    a time.

    Example:
        >>> from veto_pl.functional.heads import LinearHead
        >>> heads = [LinearHead(torch.eye(2)), LinearHead(torch.eye(2))]
        >>> sure = torch.tensor([[50.0, 0.0, 0.0, 50.0]])  # one is sure of the first id, one of the second
        >>> PooledHead(heads, [2, 2], [0.75, 0.25], "mixture").forward(sure).exp()
        tensor([[0.7500, 0.2500]])
    """

    def __init__(self, heads: Sequence[Head], widths: Sequence[int], weights: Sequence[float], pool: Pool) -> None:
        self.heads, self.widths, self.weights, self.pool = tuple(heads), list(widths), tuple(weights), pool
        self.vocab_size = self.heads[0].vocab_size
        self.scale_and_cap = ScaleAndCap()
        if any(head.vocab_size != self.vocab_size for head in self.heads):
            raise ValueError(f"Teachers must have one vocabulary, got {[head.vocab_size for head in self.heads]} ids.")

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Nothing that has a gradient."""
        return ()

    def cast(self, dtype: torch.dtype) -> PooledHead:
        """Return the same numbers as `dtype`."""
        return PooledHead([head.cast(dtype) for head in self.heads], self.widths, self.weights, self.pool)

    def forward(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Map [n, sum of widths] to [n, V]."""
        whole: Tensor | None = None
        for head, part, weight in zip(self.heads, torch.split(hidden, self.widths, 1), self.weights, strict=True):
            logits = head.scale_and_cap(head.forward(part.contiguous()))[:, : self.vocab_size]
            if self.pool == "logits":
                whole = weight * logits if whole is None else whole.add_(logits, alpha=weight)
            else:
                said = logits.log_softmax(-1) + math.log(weight)
                whole = said if whole is None else torch.logaddexp(whole, said)
        assert whole is not None, "there is one teacher at least"
        return whole if out is None else out.copy_(whole)

    def logits_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return float32 at least."""
        return torch.promote_types(hidden.dtype, torch.float32)

    def backward(self, *args: object, **kwargs: object) -> Tensor | None:
        """Refuse: teachers are frozen."""
        raise NotImplementedError("A `PooledHead` is of teachers, which have no backward pass.")
